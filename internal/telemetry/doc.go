// Package telemetry builds what every part reports through: the logger, the metrics registry, the readiness
// registry, and the admin listener that shows them.
//
// It is the only package that constructs a zerolog.Logger; everything else is handed one.
package telemetry
