package creatives

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"ctrloop/internal/artifact"
)

// Spec is what a job is to make. Equal specs are one job, whoever asks and however often.
type Spec struct {
	Products   []string `json:"products"` // sorted
	Version    string   `json:"version"`
	PerProduct int      `json:"per_product"`
	Seed       uint64   `json:"seed"`
}

// ID is a digest of the spec.
func (s Spec) ID() string {
	raw, _ := json.Marshal(s) // plain fields always encode
	sum := sha256.Sum256(raw)
	return "job-" + hex.EncodeToString(sum[:8])
}

// JobState is where a job is. The list is closed.
type JobState string

// States of a job.
const (
	Queued  JobState = "queued"
	Running JobState = "running"
	Done    JobState = "done"
	Failed  JobState = "failed" // some products have an error; asking again tries those
	// Canceled by somebody: what was made stays, the rest is not made. Asking again begins anew.
	Canceled JobState = "canceled"
)

// Progress of a job.
type Progress struct {
	ID         string            `json:"id"`
	State      JobState          `json:"state"`
	Version    string            `json:"version"`
	PerProduct int               `json:"per_product"`
	Products   int               `json:"products"`
	Done       int               `json:"done"`      // products
	Creatives  int               `json:"creatives"` // that may serve
	Blocked    int               `json:"blocked"`
	Errors     map[string]string `json:"errors,omitempty"` // by product
	Created    time.Time         `json:"created"`
	Finished   time.Time         `json:"finished,omitzero"`
}

// result is a line of a job's file: one product that is through.
type result struct {
	Product   string   `json:"product"`
	Creatives []string `json:"creatives"`
	Blocked   int      `json:"blocked"`
	Error     string   `json:"error,omitempty"`
}

// job is one job in memory; its file has the spec in the first line and a result per product after it.
type job struct {
	spec    Spec
	id      string
	file    string
	created time.Time

	mu       sync.Mutex
	state    JobState
	results  map[string]result
	finished time.Time
	done     chan struct{}      // closed when it ends
	stop     context.CancelFunc // of the turn that works on it; nil between turns
}

type header struct {
	Spec    Spec      `json:"spec"`
	Created time.Time `json:"created"`
}

func newJob(dir string, spec Spec, now time.Time) (*job, error) {
	j := &job{spec: spec, id: spec.ID(), created: now.UTC(), state: Queued, results: map[string]result{}, done: make(chan struct{})}
	j.file = filepath.Join(dir, j.id+".jsonl")
	raw, err := json.Marshal(header{spec, j.created})
	if err != nil {
		return nil, err
	}
	// Whole or not at all, in the place of what a crash may have left: without its first line a job is lost.
	if err := artifact.WriteFile(j.file, append(raw, '\n'), 0o644); err != nil {
		return nil, fmt.Errorf("job file: %w", err)
	}
	return j, nil
}

// readJob reads a job's file. A last line that a crash cut short is ignored: its product is done again.
func readJob(file string) (*job, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	sc := bufio.NewScanner(bytes.NewReader(bytes.TrimSpace(raw)))
	sc.Buffer(nil, 16<<20)
	var h header
	if !sc.Scan() || json.Unmarshal(sc.Bytes(), &h) != nil || len(h.Spec.Products) == 0 {
		return nil, fmt.Errorf("%s is not a job file", filepath.Base(file))
	}
	j := &job{
		spec:    h.Spec,
		id:      h.Spec.ID(),
		file:    file,
		created: h.Created,
		state:   Queued,
		results: map[string]result{},
		done:    make(chan struct{}),
	}
	for sc.Scan() {
		var r result
		if json.Unmarshal(sc.Bytes(), &r) == nil && r.Product != "" {
			j.results[r.Product] = r
		}
	}
	if len(j.todo()) == 0 {
		j.state = Done
		close(j.done)
	}
	return j, nil
}

func (j *job) appendLine(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(j.file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("job file: %w", err)
	}
	// The newline comes first too: should the last line have been cut short by a crash, this one is still whole.
	_, err = f.Write(append(append([]byte{'\n'}, raw...), '\n'))
	return errors.Join(err, f.Close())
}

// todo lists the products that are not through, failed ones among them.
func (j *job) todo() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []string
	for _, p := range j.spec.Products {
		if r, ok := j.results[p]; !ok || r.Error != "" {
			out = append(out, p)
		}
	}
	return out
}

func (j *job) record(r result) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.results[r.Product] = r
	return j.appendLine(r)
}

func (j *job) set(s JobState) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state = s
	switch s {
	case Done, Failed, Canceled:
		j.finished = time.Now().UTC()
		close(j.done)
	case Queued:
		j.done = make(chan struct{})
	case Running:
	}
}

// left is how many pictures are still to be made.
func (j *job) left() int { return len(j.todo()) * j.spec.PerProduct }

// cancel ends a job that has not ended; false: it has.
func (j *job) cancel() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.state != Queued && j.state != Running {
		return false
	}
	j.state, j.finished = Canceled, time.Now().UTC()
	if j.stop != nil {
		j.stop()
	}
	close(j.done)
	return true
}

// begin marks a turn of work on the job and returns its context; false: it has been canceled.
func (j *job) begin(ctx context.Context) (context.Context, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.state == Canceled {
		return ctx, false
	}
	j.state = Running
	ctx, j.stop = context.WithCancel(ctx)
	return ctx, true
}

// end marks the end of a turn; false: the job was canceled meanwhile.
func (j *job) end() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stop()
	j.stop = nil
	return j.state != Canceled
}

func (j *job) wait(ctx context.Context) error {
	j.mu.Lock()
	done := j.done
	j.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-done:
		return nil
	}
}

func (j *job) progress() Progress {
	j.mu.Lock()
	defer j.mu.Unlock()
	p := Progress{
		ID:         j.id,
		State:      j.state,
		Version:    j.spec.Version,
		PerProduct: j.spec.PerProduct,
		Products:   len(j.spec.Products),
		Created:    j.created,
		Finished:   j.finished,
	}
	for _, r := range j.results {
		if r.Error != "" {
			if p.Errors == nil {
				p.Errors = map[string]string{}
			}
			p.Errors[r.Product] = r.Error
			continue
		}
		p.Done++
		p.Creatives += len(r.Creatives)
		p.Blocked += r.Blocked
	}
	return p
}

// readJobs reads every job of a folder, oldest first. Files that are no jobs are reported and left alone.
func readJobs(dir string) (out []*job, problems []error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".jsonl") {
			continue
		}
		j, err := readJob(filepath.Join(dir, e.Name()))
		if err != nil {
			problems = append(problems, err)
			continue
		}
		out = append(out, j)
	}
	slices.SortFunc(out, func(a, b *job) int { return a.created.Compare(b.created) })
	return out, problems, nil
}
