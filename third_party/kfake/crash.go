package kfake

// This file is not part of upstream: README.md in this folder says what it adds and why.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// crashState is what loading finds of a process that did not shut down.
type crashState struct {
	mu       sync.Mutex
	open     map[int64]int16          // producers with an unfinished transaction in a partition's log, and its epoch
	begun    map[int64]int16          // the same by pids.log, where a transaction is before it writes anything
	prepared map[int64]pidLogEntry    // those that were committing, with what they commit
	windows  map[int64]tps[pidwindow] // for partitions whose log was read: the sequences of every producer in it
}

// add takes the producers of one partition's log.
func (s *crashState) add(pd *partData, batches []*partBatch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[int64]int16)
	}
	if s.windows == nil {
		s.windows = make(map[int64]tps[pidwindow])
	}
	for _, b := range batches {
		if b.Attributes&0x0020 != 0 || b.ProducerID < 0 || b.FirstSequence < 0 {
			continue
		}
		if first, ok := pd.uncommittedPIDs[b.ProducerID]; ok && b.FirstOffset >= first {
			s.open[b.ProducerID] = max(s.open[b.ProducerID], b.ProducerEpoch)
		}
		ws := s.windows[b.ProducerID]
		w := ws.mkpDefault(pd.t, pd.p)
		if ok, _, _ := w.pushAndValidate(b.ProducerEpoch, b.FirstSequence, b.NumRecords, b.FirstOffset); !ok {
			*w = pidwindow{} // it was let in at the time
			w.pushAndValidate(b.ProducerEpoch, b.FirstSequence, b.NumRecords, b.FirstOffset)
		}
		s.windows[b.ProducerID] = ws
	}
}

// entry takes one entry of pids.log.
func (s *crashState) entry(e pidLogEntry) {
	if s.begun == nil {
		s.begun, s.prepared = make(map[int64]int16), make(map[int64]pidLogEntry)
	}
	switch e.Type {
	case "begin":
		s.begun[e.PID] = e.Epoch
	case "prepare":
		s.prepared[e.PID] = e
	default: // whatever else is said of a producer follows the end of its transaction
		delete(s.begun, e.PID)
		delete(s.prepared, e.PID)
	}
}

// prepareEntry is all that is needed, beside the logs of its partitions,
// to finish committing the open transaction of a producer.
func (pidinf *pidinfo) prepareEntry() pidLogEntry {
	e := pidLogEntry{Type: "prepare", PID: pidinf.id, Epoch: pidinf.epoch}
	for group, offsets := range pidinf.txOffsets {
		topics := make(map[string]map[int32]sessionTxStagedOffsetCommit)
		offsets.each(func(t string, p int32, oc *offsetCommit) {
			if topics[t] == nil {
				topics[t] = make(map[int32]sessionTxStagedOffsetCommit)
			}
			topics[t][p] = sessionTxStagedOffsetCommit{Offset: oc.offset, LeaderEpoch: oc.leaderEpoch, Metadata: oc.metadata}
		})
		if e.Offsets == nil {
			e.Offsets = make(map[string]map[string]map[int32]sessionTxStagedOffsetCommit)
		}
		e.Offsets[group] = topics
	}
	return e
}

// endCrashed ends the transactions that were open when the process died:
// those that had been prepared are committed in every partition and group
// that has not been reached yet, all others are aborted.
//
// It may be interrupted as well: markers that are written are not written
// again, committed offsets are the same again, and the producer's entry,
// which ends it all, comes last.
func (c *Cluster) endCrashed(s *crashState) {
	open := make(map[int64]int16)
	for _, from := range []map[int64]int16{s.open, s.begun} {
		for pid, epoch := range from {
			open[pid] = max(open[pid], epoch)
		}
	}
	for pid, epoch := range open {
		pidinf := c.pids.ids[pid]
		if pidinf == nil {
			pidinf = &pidinfo{pids: &c.pids, id: pid, epoch: epoch, lastActive: time.Now()}
			c.pids.ids[pid] = pidinf
		}
		if pidinf.inTx {
			continue // the session state, written by a clean shutdown, has it
		}
		e, commit := s.prepared[pid]
		pidinf.inTx = true
		c.data.tps.each(func(t string, p int32, pd *partData) {
			if _, ok := pd.uncommittedPIDs[pid]; ok {
				pidinf.txParts.mkt(t)[p] = pd
			}
		})
		for group, topics := range e.Offsets {
			var offsets tps[offsetCommit]
			for t, ps := range topics {
				for p, oc := range ps {
					offsets.set(t, p, offsetCommit{offset: oc.Offset, leaderEpoch: oc.LeaderEpoch, metadata: oc.Metadata})
				}
			}
			if pidinf.txOffsets == nil {
				pidinf.txOffsets = make(map[string]tps[offsetCommit])
			}
			pidinf.txOffsets[group] = offsets
			pidinf.txGroups = append(pidinf.txGroups, group)
		}
		pidinf.endTx(commit)
		// The next epoch: whoever ran the transaction and is still there
		// is told so, with the outcome.
		pidinf = c.pids.bumpEpoch(pidinf)
		c.persistPIDEntry(pidLogEntry{Type: "init", PID: pidinf.id, Epoch: pidinf.epoch, TxID: pidinf.txid, Timeout: pidinf.txTimeout, Commit: &commit})
		c.cfg.logger.Logf(LogLevelInfo, "txn: ended what a crash left open: txn_id=%s producer_id=%d commit=%v", pidinf.txid, pid, commit)
	}
	// Producers that outlive the broker send again what was not answered:
	// it is told apart from what follows by the sequences in the log.
	for pid, ws := range s.windows {
		pidinf := c.pids.ids[pid]
		if pidinf == nil {
			continue
		}
		ws.each(func(t string, p int32, w *pidwindow) {
			pidinf.windows.set(t, p, *w)
		})
	}
}

// truncateLog cuts a torn entry off an append log. If it stayed, nothing
// behind it would ever be read.
func truncateLog(fsys fs, path string, size int) error {
	f, err := fsys.OpenFile(path, os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(int64(size))
}

const (
	swapNew = ".new" // of a partition's folder: compacted files, incomplete while the folder is there
	swapOld = ".old" // what they have replaced
)

// swapSegments replaces the files of a partition by those of the batches.
// After an error the old ones are there still.
func (c *Cluster) swapSegments(pd *partData, pdir string, batches []*partBatch) error {
	if err := errors.Join(c.fs.RemoveAll(pdir+swapNew), c.fs.MkdirAll(pdir+swapNew, 0o755)); err != nil {
		return err
	}
	var segments []segmentInfo
	var dat, idx []byte
	flush := func() error {
		si := &segments[len(segments)-1]
		si.size = int64(len(dat))
		err := errors.Join(
			writeFile(c.fs, filepath.Join(pdir+swapNew, segmentFileName(si.base)), dat),
			writeFile(c.fs, filepath.Join(pdir+swapNew, indexFileName(si.base)), idx),
		)
		dat, idx = dat[:0], idx[:0]
		return err
	}
	for _, b := range batches {
		if len(segments) == 0 || int64(len(dat)) >= c.segmentBytes(pd.t) {
			if len(segments) > 0 {
				if err := flush(); err != nil {
					return err
				}
			}
			segments = append(segments, segmentInfo{base: b.FirstOffset, lastModified: time.Now().UnixMilli()})
		}
		si := &segments[len(segments)-1]
		meta := b.meta(int64(len(dat)))
		si.index = append(si.index, meta)
		si.updateEpochRange(b.epoch)
		si.updateMaxBatch(meta, len(dat) == 0)
		dat = b.RecordBatch.AppendTo(dat)
		entry := encodeIndexEntry(b.epoch, b.maxEarlierTimestamp, b.inTx)
		idx = append(idx, entry[:]...)
	}
	if len(segments) > 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	if err := c.fs.Rename(pdir, pdir+swapOld); err != nil {
		return err
	}
	if err := c.fs.Rename(pdir+swapNew, pdir); err != nil {
		return err
	}
	pd.segments = segments
	if len(batches) == 0 {
		pd.rolledAt = time.Now()
	}
	pd.rebuildMaxTimestampMeta()
	return c.fs.RemoveAll(pdir + swapOld)
}

// finishSwap brings a partition's folder to one side of a swap that was
// interrupted.
func finishSwap(fsys fs, pdir string) error {
	if _, err := fsys.Stat(pdir); os.IsNotExist(err) {
		if err := fsys.Rename(pdir+swapNew, pdir); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return errors.Join(fsys.RemoveAll(pdir+swapNew), fsys.RemoveAll(pdir+swapOld))
}

func writeFile(fsys fs, path string, data []byte) error {
	f, err := fsys.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return f.Sync()
}
