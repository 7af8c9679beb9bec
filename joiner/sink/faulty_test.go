package sink

import (
	"context"

	"ctrloop/internal/stream"
)

// step names a place where the process may die.
type step string

const (
	stepIntent    step = "intent"    // pending=e committed, nothing inserted
	stepInserted  step = "inserted"  // inserted, e not committed
	stepCommitted step = "committed" // e committed
)

// breakOff makes a service ask at every step of a block whether to break off there.
func breakOff(s *Service, fault func(step) error) {
	s.connect = func(c stream.ConsumerConfig) (Source, error) {
		m, err := s.member(c)
		return faulty{m, fault}, err
	}
}

type faulty struct {
	Source
	fault func(step) error
}

func (f faulty) Commit(ctx context.Context, at map[stream.TopicPartition]stream.Committed) error {
	intent := false
	for _, c := range at {
		intent = c.Metadata != ""
	}
	after := stepIntent
	if !intent {
		after = stepCommitted
		if err := f.fault(stepInserted); err != nil {
			return err
		}
	}
	if err := f.Source.Commit(ctx, at); err != nil {
		return err
	}
	return f.fault(after)
}
