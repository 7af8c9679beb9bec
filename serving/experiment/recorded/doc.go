// Package recorded answers about an experiment from what the warehouse has on record alone: the commands that made its ramp, in the
// table control_log, and its mature impressions. It needs no running instance. `ctrloop stats --experiment` prints what it says.
package recorded
