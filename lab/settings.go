package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"ctrloop/internal/process"
	trainerbridge "ctrloop/trainer-bridge"
)

// Asked are hyper-parameters of a job that is yet to come.
type Asked struct {
	Kind  trainerbridge.Kind `json:"kind"`
	Hyper map[string]any     `json:"hyper"`
}

// Settings asks the trainer whether it would take hyper-parameters, and returns what each comes to, the trainer's
// defaults included. What it refuses is wrong usage, and is found out in seconds: before worlds are drawn and reward
// models trained for a job that cannot run.
func (t *Trainer) Settings(ctx context.Context, asked ...Asked) ([]map[string]any, error) {
	in, err := json.Marshal(asked)
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	var out bytes.Buffer
	err = process.Run(ctx, process.Spec{
		Name: "settings", Path: t.Python, Args: []string{"-m", "ctrloop_trainer.settings"}, Stdin: bytes.NewReader(in), Stdout: &out,
		Env: []string{"PYTHONPATH=" + t.Trainer, "PYTHONDONTWRITEBYTECODE=1"}, Threads: t.Threads,
	}, t.Log)
	var failed *process.Error
	if errors.As(err, &failed) && failed.Exit.Code == badInput.ExitCode(badInput{}) {
		return nil, badInput{fmt.Errorf("the trainer refuses these settings: %s", failed.Tail)}
	}
	if err != nil {
		return nil, fmt.Errorf("check the settings of jobs: %w", err)
	}
	var told []map[string]any
	if err := json.Unmarshal(out.Bytes(), &told); err != nil || len(told) != len(asked) {
		return nil, fmt.Errorf("settings: the trainer says %q: %w", out.String(), err)
	}
	return told, nil
}

// checkRounds checks everything that rounds need and returns their number of epochs: the given one, or where that is
// 0 the trainer's own.
func (b *Bench) checkRounds(ctx context.Context, epochs int, families ...*family) (int, error) {
	var asked []Asked
	for _, f := range families {
		asked = append(asked,
			Asked{trainerbridge.KindRounds, b.roundsHyper(epochs, f.arms)},
			Asked{trainerbridge.KindReward, merged(b.Reward, f.reward)})
	}
	told, err := b.Trainer.Settings(ctx, asked...)
	if err != nil {
		return 0, err
	}
	n, _ := told[0]["epochs"].(float64)
	if n < 1 {
		return 0, fmt.Errorf("settings: the trainer says %v epochs", told[0]["epochs"])
	}
	return int(n), nil
}
