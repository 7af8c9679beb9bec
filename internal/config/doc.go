// Package config loads a configuration tree from one strict YAML file and documents it.
//
// A tree is a struct whose fields have yaml tags, doc comments and defaults; sections that can be wrong have
// `Validate() error`. [Load] starts from the defaults, takes the file's values, and reports every problem at once
// with its line and path: unknown keys (with the nearest known one), values of the wrong type, what Validate
// says of any section.
//
// Text values may refer to the environment and to files, which keeps secrets out of the file itself:
//
//	password: ${CLICKHOUSE_PASSWORD}          # an environment variable; an unset one is an error
//	address: ${KAFKA_ADDRESS:-127.0.0.1:9092} # with a default
//	token: ${file:/run/secrets/token}         # a file's content without the final line end
//	literal: $${not expanded}
//
// Durations carry a unit: 500ms, 30s, 15m, 12h, 7d.
package config
