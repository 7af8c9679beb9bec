package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ctrloop/app"
	"ctrloop/internal/artifact"
)

// state is what a demo remembers between attempts, besides what the system and the world's journal remember.
type state struct {
	Settings settings           `json:"settings"`
	Attempts int                `json:"attempts"`
	Wall     float64            `json:"wall_seconds"` // of finished attempts and of this one up to the last save
	Phases   map[string]float64 `json:"phases"`       // seconds
	Swap     Swap               `json:"swap"`         // of attempts before this one
	// Ending is why the world's day ends ("decided", or why there was no decision), written before the edge is
	// promised that nothing older follows: after that promise no more traffic may be sent, resumed or not.
	Ending string `json:"ending,omitempty"`
	file   string
	began  time.Time
	before float64
}

// settings are the options that make two runs the same demo. They cannot change over a resumed run.
type settings struct {
	Seed            uint64  `json:"seed"`
	Quick           bool    `json:"quick"`
	Products        string  `json:"products"`
	Holdout         string  `json:"holdout"`
	HoldoutFraction float64 `json:"holdout_fraction"`
	Clickbait       float64 `json:"clickbait"`

	Images app.ImageBackend `json:"images"`
}

// openState reads the state of an interrupted demo in dir, or starts one.
func openState(dir string, s settings) (*state, error) {
	st := &state{Settings: s, Phases: map[string]float64{}, file: filepath.Join(dir, "demo.json"), began: time.Now()}
	raw, err := os.ReadFile(st.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("resume the demo: %w", err)
	default:
		var old state
		if err := json.Unmarshal(raw, &old); err != nil {
			return nil, fmt.Errorf("resume the demo: %s: %w", st.file, err)
		}
		if old.Settings != s {
			return nil, fmt.Errorf(
				"the folder holds a demo with other options (%+v); give the same ones to resume it, or another --dir",
				old.Settings,
			)
		}
		st.Attempts, st.Wall, st.Swap, st.Ending = old.Attempts, old.Wall, old.Swap, old.Ending
		if old.Phases != nil {
			st.Phases = old.Phases
		}
	}
	st.before = st.Wall
	st.Attempts++
	return st, st.save()
}

// save writes the state, whole or not at all.
func (s *state) save() error {
	s.Wall = s.before + time.Since(s.began).Seconds()
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("save the demo's state: %w", err)
	}
	return artifact.WriteFile(s.file, raw, 0o644)
}
