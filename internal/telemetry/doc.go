// Package telemetry builds what every part reports through: the logger, the metrics registry, and the registry of what
// works and what does not. Package admin shows them.
//
// It is the only package that constructs a zerolog.Logger; everything else is handed one.
package telemetry
