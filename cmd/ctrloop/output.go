package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strings"

	"ctrloop/internal/artifact"
	"ctrloop/internal/telemetry"

	"github.com/rs/zerolog"
)

// output is where a command writes: results to stdout, logs and errors to stderr.
//
// Commands that read have `--json` as a switch and print one JSON document on stdout. Commands that work for a
// while (demo, replay, bench, stats) have `--json FILE`, where `-` is stdout, see [output.writeJSON].
type output struct {
	stdout, stderr io.Writer
}

// logger builds the logger of a command from the shared options.
func (o *output) logger(g *Globals) zerolog.Logger {
	return o.loggerAt(g, "info")
}

// quietLogger is the logger of a command that shows its own progress: only what went wrong, unless asked.
func (o *output) quietLogger(g *Globals) zerolog.Logger { return o.loggerAt(g, "warn") }

func (o *output) loggerAt(g *Globals, auto string) zerolog.Logger {
	level := g.LogLevel
	if level == "auto" || level == "" {
		level = auto
	}
	return telemetry.NewLogger(telemetry.LogConfig{Level: level, Format: g.LogFormat}, o.stderr)
}

// checkFinite refuses an answer with a number in it that is none: the one place where NaN and infinities are stopped. What is
// not known is null in an answer (a pointer that is nil), with the reason beside it.
func checkFinite(v any) error { return finiteAt(reflect.ValueOf(v), "") }

func finiteAt(v reflect.Value, path string) error {
	switch v.Kind() {
	case reflect.Float32, reflect.Float64:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("%s would be %g: the input is beyond what can be computed with", strings.TrimPrefix(path, "."), f)
		}
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			return finiteAt(v.Elem(), path)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if err := finiteAt(v.Field(i), path+"."+v.Type().Field(i).Name); err != nil {
				return err
			}
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if err := finiteAt(v.Index(i), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			if err := finiteAt(v.MapIndex(k), fmt.Sprintf("%s[%v]", path, k)); err != nil {
				return err
			}
		}
	default: // has no number of this kind in it
	}
	return nil
}

// printJSON prints v on stdout as one indented JSON document.
func (o *output) printJSON(v any) error {
	enc := json.NewEncoder(o.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// writeJSON writes v to the file at path, or to stdout where path is "-". An empty path writes nothing. The
// file appears whole or not at all.
func (o *output) writeJSON(path string, v any) error {
	switch path {
	case "":
		return nil
	case "-":
		return o.printJSON(v)
	}
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the result for %s: %w", path, err)
	}
	return artifact.WriteFile(path, append(raw, '\n'), 0o644)
}

// printError prints what failed and why (the error's text), then each hint on what to do about it.
func printError(w io.Writer, err error) {
	fmt.Fprintf(w, "ctrloop: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n  "))
	var hinter interface{ Hint() string }
	if errors.As(err, &hinter) && hinter.Hint() != "" {
		fmt.Fprintf(w, "  do: %s\n", strings.ReplaceAll(hinter.Hint(), "\n", "\n      "))
	}
}

// hintedError adds what the user can do about it to an error.
type hintedError struct {
	error
	hint string
}

func (e hintedError) Unwrap() error { return e.error }

// Hint says what to do about the error.
func (e hintedError) Hint() string { return e.hint }

// withHint adds what to do to err.
func withHint(err error, hint string) error { return hintedError{err, hint} }

// usageError is an error in what the user gave: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// ExitCode makes the command exit as for wrong usage.
func (usageError) ExitCode() int { return exitUsage }
