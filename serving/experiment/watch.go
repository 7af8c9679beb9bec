package experiment

import (
	"context"
	"fmt"
	"sync"
	"time"

	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/ramp"
)

// Seen says how the looks at an experiment go.
type Seen struct {
	Last   time.Time `json:"last"`          // wall clock of the last look that saw everything; zero: none since this process started
	Failed int       `json:"failed_in_row"` // looks since then that failed, or could not read all figures
	Error  string    `json:"error"`         // of the last one; empty: it was good
	Alarm  bool      `json:"alarm"`         // that many as failed_looks.alarm_after
	Stale  bool      `json:"stale"`         // the figures of the last look must not be taken for present ones
	Age    float64   `json:"age_seconds"`   // of the last look that saw everything; -1: there is none
}

// watch counts the looks of each experiment that failed. It is kept by the process that looks.
type watch struct {
	mu sync.Mutex
	by map[string]*watched
}

type watched struct {
	last   time.Time
	failed int
	err    error
}

func (w *watch) of(id string) *watched {
	if w.by == nil {
		w.by = map[string]*watched{}
	}
	if w.by[id] == nil {
		w.by[id] = &watched{}
	}
	return w.by[id]
}

// retain forgets experiments that do not run any more.
func (w *watch) retain(running []control.ExperimentStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	on := map[string]bool{}
	for _, x := range running {
		on[x.ID] = true
	}
	for id := range w.by {
		if !on[id] {
			delete(w.by, id)
		}
	}
}

// alarms counts the experiments whose looks have failed too often in a row.
func (w *watch) alarms(cfg Failed) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.by {
		if cfg.AlarmAfter > 0 && x.failed >= cfg.AlarmAfter {
			n++
		}
	}
	return n
}

// saw takes note of a look, and returns what it has not seen.
func (w *watch) saw(id string, now time.Time, v ramp.Verdict) error {
	if len(v.Figures.Unread) > 0 || v.Figures.Broken != "" {
		return fmt.Errorf("not all figures are there: %s", ramp.Unseen(v.Figures))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	*w.of(id) = watched{last: now}
	return nil
}

// fail counts a failed look and returns how many there have been in a row.
func (w *watch) fail(id string, err error) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.of(id)
	x.failed, x.err = x.failed+1, err
	return x.failed
}

// blind counts a look that failed, and does what the configuration wants after so many in a row: pause, then roll back.
// acted says whether it did; err is then that of the command.
func (s *Service) blind(
	ctx context.Context, log control.Log, st *control.State, x control.ExperimentStatus, at int64, failed error,
) (acted bool, err error) {
	n := s.watch.fail(x.ID, failed)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout) // the look may have used up its own time
	defer cancel()
	why := fmt.Sprintf("%d looks in a row failed: %.300s", n, failed)
	switch cfg := s.cfg.Failed; {
	case cfg.RollBackAfter > 0 && n >= cfg.RollBackAfter:
		v := ramp.Verdict{Action: ramp.RollBack, Rule: ramp.Blind, Why: why, Figures: ramp.NoFigures(x.Step, why)}
		s.metrics.looks.WithLabelValues(string(v.Action), string(v.Rule)).Inc()
		return true, s.act(ctx, log, st, x, at, v)
	case cfg.PauseAfter > 0 && n >= cfg.PauseAfter && !x.Paused:
		return true, s.write(ctx, log, control.ExperimentPaused, control.ExperimentEntity(x.ID), at, actor,
			why+"; resume it when looks work again", control.Pause{})
	case cfg.AlarmAfter > 0 && n == cfg.AlarmAfter:
		s.log.Error().Str("experiment", x.ID).Int("looks", n).Err(failed).Msg("nobody sees what the experiment does: its looks fail")
	}
	return false, nil
}

// Seen says how the looks at a running experiment go, in the process that looks.
func (s *Service) Seen(id string) Seen {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	x := s.watch.by[id]
	if x == nil {
		return Seen{Age: -1}
	}
	out := Seen{Last: x.last, Failed: x.failed, Age: -1, Alarm: s.cfg.Failed.AlarmAfter > 0 && x.failed >= s.cfg.Failed.AlarmAfter}
	if x.err != nil {
		out.Error = x.err.Error()
	}
	if !x.last.IsZero() {
		out.Age = s.d.Wall().Sub(x.last).Seconds()
	}
	out.Stale = x.failed > 0 || out.Age > 3*(s.cfg.Interval+s.cfg.Timeout).Seconds()
	return out
}
