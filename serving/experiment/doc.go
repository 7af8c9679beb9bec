// Package experiment runs A/B tests of model versions: it looks at each running experiment at an interval, lets
// the pure controller of package ramp judge what the warehouse has seen, and writes what follows to the control
// log. Units are assigned to arms by package assign.
//
// Nothing is remembered between looks: the control log says which step runs since when, the warehouse has the
// sums. So a restart changes nothing, and of several replicas that look at once the control log takes the first
// and refuses the others (each command names the version that it was decided on).
package experiment
