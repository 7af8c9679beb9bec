package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Beacon lets processes see that others are alive: each commits a number under a name of its own, as the offset of a
// group that has no members. The broker keeps the last one only, so showing it for years takes no room.
type Beacon struct {
	topic string
	cl    *kgo.Client
	adm   *kadm.Client
}

// beaconGroup begins the names of the groups.
const beaconGroup = "ctrloop-alive-"

// NewBeacon connects lazily. The topic must exist and have a partition 0; nothing is written to it.
func NewBeacon(c Config, topic string) (*Beacon, error) {
	opts, err := c.options()
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("beacon: %w", err)
	}
	return &Beacon{topic, cl, kadm.NewClient(cl)}, nil
}

// Beat shows n, which should grow, under the name.
func (b *Beacon) Beat(ctx context.Context, name string, n int64) error {
	offsets := kadm.Offsets{}
	offsets.AddOffset(b.topic, 0, n, -1)
	answer, err := b.adm.CommitOffsets(ctx, beaconGroup+name, offsets)
	if err == nil {
		err = answer.Error()
	}
	if err != nil {
		return fmt.Errorf("show that %s is alive: %w", name, err)
	}
	return nil
}

// Last is the number that the name has shown last; -1: none.
func (b *Beacon) Last(ctx context.Context, name string) (int64, error) {
	offsets, err := b.adm.FetchOffsets(ctx, beaconGroup+name)
	if errors.Is(err, kerr.GroupIDNotFound) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("see whether %s is alive: %w", name, err)
	}
	o, ok := offsets.Lookup(b.topic, 0)
	switch {
	case !ok:
		return -1, nil
	case o.Err != nil:
		return -1, fmt.Errorf("see whether %s is alive: %w", name, o.Err)
	}
	return o.At, nil
}

// Close disconnects; what was shown last stays.
func (b *Beacon) Close() { b.cl.Close() }
