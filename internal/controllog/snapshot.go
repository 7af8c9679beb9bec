package controllog

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
)

const (
	// snapshotEvery is after how many records a snapshot is due: a start then folds some thousands at most.
	snapshotEvery = 1000
	// maxSnapshot bounds one, in bytes as it is sent; brokers take records of 1 MiB unless told otherwise.
	maxSnapshot = 900 << 10
	// sendTimeout bounds how long one may hold up the end of a process.
	sendTimeout = 10 * time.Second
	// maxUnpacked bounds what is read back, in bytes.
	maxUnpacked = 256 << 20
)

// snapshotKey is the only key of the topic: compaction keeps the newest.
const snapshotKey = "state"

// newest returns the newest snapshot that fits the log, nil if there is none.
func (l *Log) newest(ctx context.Context, c stream.Config, id string, end int64) (*control.State, error) {
	var best *control.State
	read := func(r *stream.Record) error {
		raw, err := unpack(r.Value)
		if err != nil {
			l.log.Warn().Err(err).Int64("offset", r.Offset).Msg("control log: skipped a snapshot")
			return nil
		}
		of, st, err := control.ReadSnapshot(raw)
		switch {
		case err != nil:
			l.log.Warn().Err(err).Int64("offset", r.Offset).Msg("control log: skipped a snapshot")
		case of != id || st.Offset >= end: // the topic was made anew, or brought back from an older copy
			l.log.Warn().Int64("at", st.Offset).Int64("end", end).Msg("control log: skipped a snapshot of another log")
		case best == nil || st.Offset > best.Offset:
			best = st
		}
		return nil
	}
	replica, err := stream.OpenReplica(ctx, c, schemas.TopicSnapshots, -1, read, func(error) {})
	if err != nil {
		return nil, err
	}
	replica.Close()
	return best, nil
}

// begin returns the state to fold on from: the newest snapshot, or nothing and the whole log.
func (l *Log) begin(ctx context.Context, c stream.Config) (*control.State, error) {
	tp := stream.TopicPartition{Topic: schemas.TopicControl}
	ids, err := stream.TopicIDs(ctx, c, schemas.TopicControl)
	if err != nil {
		return nil, err
	}
	start, err := stream.StartOffsets(ctx, c, schemas.TopicControl)
	if err != nil {
		return nil, err
	}
	end, err := stream.EndOffsets(ctx, c, schemas.TopicControl)
	if err != nil {
		return nil, err
	}
	l.id = ids[schemas.TopicControl]
	st, err := l.newest(ctx, c, l.id, end[tp])
	if err != nil { // it is only a shortcut
		l.log.Warn().Err(err).Msg("control log: snapshots cannot be read; reading the log from its start")
	}
	if st == nil {
		st = control.NewState()
	}
	if start[tp] > st.Offset+1 {
		return nil, fmt.Errorf(
			"%s begins at offset %d and no snapshot covers what was before: decisions are missing: %w (restore the topic from a backup)",
			schemas.TopicControl, start[tp], stream.ErrDataLoss)
	}
	return st, nil
}

// snapshotDue says whether to write one now. The lock is held.
func (l *Log) snapshotDue() bool {
	return l.state.Behind == nil && !l.writing && l.state.Offset/snapshotEvery > l.snapshot/snapshotEvery
}

// writeSnapshot writes one beside the fold. The lock is held.
func (l *Log) writeSnapshot() {
	raw, err := l.state.Snapshot(l.id)
	if err != nil {
		l.log.Error().Err(err).Msg("control log: no snapshot")
		return
	}
	at := l.state.Offset
	l.writing, l.snapshot = true, at
	l.background.Go(func() {
		err := l.sendSnapshot(raw)
		result := "written"
		if err != nil {
			result = "failed"
			l.log.Warn().Err(err).Int64("offset", at).Msg("control log: no snapshot; the next start reads more")
		}
		l.metrics.snapshots.WithLabelValues(result).Inc()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.writing = false
	})
}

func (l *Log) sendSnapshot(raw []byte) error {
	packed, err := pack(raw)
	if err != nil {
		return err
	}
	if len(packed) > maxSnapshot {
		return fmt.Errorf("a snapshot of %d bytes, at most %d", len(packed), maxSnapshot)
	}
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout) // not until Close: that waits for it
	defer cancel()
	return l.producer.Produce(ctx, &stream.Record{Topic: schemas.TopicSnapshots, Key: []byte(snapshotKey), Value: packed})
}

func pack(raw []byte) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(raw)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("pack a snapshot: %w", err)
	}
	return b.Bytes(), nil
}

func unpack(packed []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("unpack a snapshot: %w", err)
	}
	raw, err := io.ReadAll(io.LimitReader(r, maxUnpacked+1))
	if err != nil {
		return nil, fmt.Errorf("unpack a snapshot: %w", err)
	}
	if len(raw) > maxUnpacked {
		return nil, fmt.Errorf("unpack a snapshot: more than %d bytes", maxUnpacked)
	}
	return raw, nil
}
