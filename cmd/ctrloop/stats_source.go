package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"ctrloop/serving/experiment/recorded"
)

// statsSource are the options about an experiment in a warehouse, in the place of a file.
type statsSource struct {
	Experiment string `placeholder:"NAME" help:"Take the data of this experiment from the warehouse instead of a file."`
	storeFlags
	Step   string        `placeholder:"STEP" help:"Step of the ramp, all visits to it: a number from 1, deciding (the default: the step that decides or, before it is reached, the present one), or all. Over steps with different shares a plain lift can turn around (Simpson)."`
	Settle time.Duration `default:"1m" help:"Leave this much out after a step began, as the controller does (experiment.settle): some replicas still assign by the old share."`
}

// fromFileOrWarehouse reads the file, or asks the warehouse where an experiment is named, and says which it was.
func fromFileOrWarehouse[T any](
	ctx context.Context,
	g *Globals,
	o *output,
	file string,
	s *statsSource,
	read func(io.Reader) (T, error),
	ask func(*recorded.Experiment) (T, error),
) (v T, name string, err error) {
	switch {
	case (file == "") == (s.Experiment == ""):
		return v, "", usageError{errors.New("give a file, or an experiment of the warehouse with --experiment NAME: one of the two")}
	case s.Experiment == "" && s.Step != "":
		return v, "", usageError{fmt.Errorf("--step %s: a file has no steps; it goes with --experiment", s.Step)}
	case s.Settle < 0:
		return v, "", usageError{fmt.Errorf("--settle %v: want 0 or more", s.Settle)}
	}
	if s.Experiment == "" {
		v, err = readStatsFile(file, read)
		return v, file, err
	}
	db, done, err := s.open(ctx, g, o, false)
	if err != nil {
		return v, "", err
	}
	defer done()
	x, err := recorded.Open(ctx, db, recorded.Question{Experiment: s.Experiment, Step: s.Step, Settle: s.Settle})
	if err != nil {
		return v, "", byUsage(err)
	}
	for _, w := range x.Warnings() {
		fmt.Fprintln(o.stderr, "warning: "+w)
	}
	v, err = ask(x)
	if err != nil {
		err = fmt.Errorf("experiment %s: %w", s.Experiment, byUsage(err))
	}
	return v, x.Name(), err
}

// byUsage marks the refusal of a wrong question as wrong usage.
func byUsage(err error) error {
	if refused, ok := errors.AsType[*recorded.Error](err); ok && refused.Mistake() {
		return usageError{err}
	}
	return err
}
