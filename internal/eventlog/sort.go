package eventlog

import (
	"bufio"
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// runBytes is how much of a log is sorted in memory at a time.
const runBytes = 128 << 20

// Sorted gives the events of a log in the order of their times, whatever order they stand in: it reads the whole log,
// in runs that are sorted in memory and put aside in temporary files.
type Sorted struct {
	runs []*run
	heap runHeap
}

// run is a sorted part of the log: in memory, or in a file.
type run struct {
	lines []Line
	file  *os.File
	r     *bufio.Reader
	nth   int
	head  Line
}

// Sort reads next until io.EOF. dir is for temporary files. Close the result.
func Sort(next func() (Line, error), dir string) (*Sorted, error) {
	return sortRuns(next, dir, runBytes)
}

func sortRuns(next func() (Line, error), dir string, limit int) (s *Sorted, err error) {
	s = &Sorted{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	var lines []Line
	size := 0
	for {
		l, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return s, err
		}
		lines = append(lines, l)
		if size += len(l.JSON) + 64; size >= limit {
			if err := s.spill(lines, dir); err != nil {
				return s, err
			}
			lines, size = lines[:0], 0
		}
	}
	sortLines(lines)
	s.runs = append(s.runs, &run{lines: lines, nth: len(s.runs)})
	for _, r := range s.runs {
		if err := s.advance(r); err != nil {
			return s, err
		}
	}
	return s, nil
}

// sortLines keeps the order of reading among equal times, and an impression before its click.
func sortLines(lines []Line) {
	slices.SortStableFunc(lines, func(a, b Line) int { return cmp.Compare(a.TimeMS, b.TimeMS) })
}

func (s *Sorted) spill(lines []Line, dir string) error {
	sortLines(lines)
	f, err := os.CreateTemp(dir, "sort-*")
	if err != nil {
		return fmt.Errorf("sort the log: %w", err)
	}
	// Without a name it goes with its descriptor, whatever ends this process.
	if err := os.Remove(f.Name()); err != nil {
		return errors.Join(fmt.Errorf("sort the log: %w", err), f.Close())
	}
	r := &run{file: f, nth: len(s.runs)}
	s.runs = append(s.runs, r)
	w := bufio.NewWriterSize(f, 1<<20)
	for _, l := range lines {
		if _, err := w.Write(appendLine(nil, l)); err != nil {
			return fmt.Errorf("sort the log: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("sort the log: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("sort the log: %w", err)
	}
	r.r = bufio.NewReaderSize(f, 1<<18)
	return nil
}

func appendLine(b []byte, l Line) []byte {
	b = binary.AppendVarint(b, l.TimeMS)
	b = binary.AppendVarint(b, l.Row)
	click := byte(0)
	if l.Click {
		click = 1
	}
	b = append(b, click)
	b = binary.AppendUvarint(b, uint64(len(l.File)))
	b = append(b, l.File...)
	b = binary.AppendUvarint(b, uint64(len(l.JSON)))
	return append(b, l.JSON...)
}

func readSorted(r *bufio.Reader) (l Line, err error) {
	if l.TimeMS, err = binary.ReadVarint(r); err != nil {
		return l, err // io.EOF between two lines
	}
	read := func() (b []byte) {
		var n uint64
		if err == nil {
			n, err = binary.ReadUvarint(r)
		}
		if err == nil {
			b = make([]byte, n)
			_, err = io.ReadFull(r, b)
		}
		return b
	}
	l.Row, err = binary.ReadVarint(r)
	if err == nil {
		var click byte
		click, err = r.ReadByte()
		l.Click = click == 1
	}
	l.File = string(read())
	l.JSON = read()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return l, fmt.Errorf("sort the log: a temporary file is cut: %w", err)
	}
	return l, nil
}

// advance puts the next line of a run into the heap; a run that has ended leaves it.
func (s *Sorted) advance(r *run) error {
	switch {
	case r.file != nil:
		l, err := readSorted(r.r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.head = l
	case len(r.lines) == 0:
		return nil
	default:
		r.head, r.lines = r.lines[0], r.lines[1:]
	}
	heap.Push(&s.heap, r)
	return nil
}

// Next returns the next event, io.EOF after the last.
func (s *Sorted) Next() (Line, error) {
	if len(s.heap) == 0 {
		return Line{}, io.EOF
	}
	r := heap.Pop(&s.heap).(*run)
	l := r.head
	return l, s.advance(r)
}

// Close removes the temporary files.
func (s *Sorted) Close() error {
	var errs []error
	for _, r := range s.runs {
		if r.file != nil {
			errs = append(errs, r.file.Close())
		}
	}
	return errors.Join(errs...)
}

type runHeap []*run

func (h runHeap) Len() int { return len(h) }
func (h runHeap) Less(i, j int) bool {
	if h[i].head.TimeMS != h[j].head.TimeMS {
		return h[i].head.TimeMS < h[j].head.TimeMS
	}
	return h[i].nth < h[j].nth // the order of reading
}
func (h runHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *runHeap) Push(x any)   { *h = append(*h, x.(*run)) }
func (h *runHeap) Pop() any {
	old := *h
	r := old[len(old)-1]
	*h = old[:len(old)-1]
	return r
}
