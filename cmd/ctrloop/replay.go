package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"ctrloop/internal/eventlog"
	"ctrloop/internal/setup"
	"ctrloop/replay"
)

// ReplayCmd is `ctrloop replay`.
type ReplayCmd struct {
	Logs       []string      `arg:"" name:"log" help:"Open Bandit logs (CSV) or JSON lines, plain or compressed (gzip, zstd, bzip2); - is standard input. Several are merged by time." type:"existingfile"`
	JSON       string        `name:"json" help:"Write the result to this file; - is standard output." placeholder:"FILE"`
	Dir        string        `help:"Keep the stores in this folder, for ctrloop sql; without it they are thrown away, and the broker is a stand-in in memory (kfake)." type:"path" placeholder:"DIR"`
	KeepOpen   bool          `help:"Leave the last windows open for the next log of the same --dir: its clicks may belong to them."`
	Sort       bool          `help:"The logs may stand in any order: they are brought into the order of their times first."`
	SkipBad    bool          `help:"Count rows that cannot be read and pass over them, instead of ending at the first."`
	Rejects    string        `help:"Write every row and event that was not taken to this file, as JSON lines with file, line and reason." placeholder:"FILE"`
	MaxRejects share         `help:"Share of rows that may be rejected before the exit code is 4, as 0.001 or 0.1%." default:"0.1%" placeholder:"SHARE"`
	Seed       uint64        `help:"Seed of the click delays, for logs without click times." default:"1"`
	Delay      time.Duration `help:"Median of the click delays: log-normal, cut off at --delay-max." default:"20s"`
	DelaySigma float64       `help:"Standard deviation of the logarithm of the delay." default:"1.2"`
	DelayMax   time.Duration `help:"Longest delay. Must be inside the window, or logged clicks would come too late." default:"20m"`
	Window     time.Duration `help:"Join window." default:"30m"`
	Partitions int32         `help:"Partitions of a new store." default:"4"`
}

// share is a share of a whole on the command line: 0.001, or 0.1%.
type share float64

// UnmarshalText reads either form.
func (s *share) UnmarshalText(text []byte) error {
	number, percent := strings.CutSuffix(strings.TrimSpace(string(text)), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if percent {
		v /= 100
	}
	if err != nil || math.IsNaN(v) || v < 0 || v > 1 {
		return fmt.Errorf("%q is not a share from 0 to 1: write 0.001 or 0.1%%", text)
	}
	*s = share(v)
	return nil
}

// lossError ends a replay that worked, and of which something is missing in the store.
type lossError struct{ error }

func (e lossError) Unwrap() error { return e.error }

// ExitCode tells the loss from a failure.
func (lossError) ExitCode() int { return exitLost }

// Run replays the logs through edge, join and sink.
func (c *ReplayCmd) Run(ctx context.Context, g *Globals, out *output) (err error) {
	if c.DelayMax >= c.Window {
		return usageError{fmt.Errorf("--delay-max %v is not inside the window of %v: clicks of the log would come too late; "+
			"use a shorter delay or a longer window", c.DelayMax, c.Window)}
	}
	home, err := setup.Home(g.Home)
	if err != nil {
		return err
	}
	logs, err := eventlog.Open(c.Logs, c.reading())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	notes, err := newRejects(c.Rejects)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, notes.Close()) }()
	dir := c.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "ctrloop-replay-*"); err != nil {
			return fmt.Errorf("folder for the stores: %w", err)
		}
		defer os.RemoveAll(dir)
	}
	res, err := replay.Run(ctx, logs, replay.Options{
		Dir: dir, Throwaway: c.Dir == "", Home: home, Version: version, Window: c.Window, Partitions: c.Partitions,
		KeepOpen: c.KeepOpen, SkipBad: c.SkipBad,
		Sort: c.Sort, Refused: notes.add, Progress: out.stderr, Log: out.quietLogger(g),
	})
	if _, tooOld := errors.AsType[*replay.TooOldError](err); tooOld {
		err = lossError{err}
	}
	if err != nil {
		notes.print(out.stderr)
		return err
	}
	printReplay(out.stdout, res)
	notes.print(out.stderr)
	for _, name := range logs.Empty() {
		fmt.Fprintf(out.stderr, "%s holds no row\n", name)
	}
	if err := out.writeJSON(c.JSON, res); err != nil {
		return err
	}
	return c.judge(res)
}

func (c *ReplayCmd) reading() eventlog.Options {
	opt := eventlog.Options{
		Seed: c.Seed, Delay: eventlog.Delay{Median: c.Delay, Sigma: c.DelaySigma, Max: c.DelayMax}, Disorder: replay.Disorder(),
		// A day for clocks and zones that are off.
		Latest: time.Now().Add(24 * time.Hour), Stdin: os.Stdin,
	}
	if c.Sort {
		opt.Disorder = 0
	}
	return opt
}

// judge makes an error of what a person must know about.
func (c *ReplayCmd) judge(res replay.Result) error {
	switch {
	case !res.LedgerOK || res.AuditMismatch != 0:
		return errors.New("the counts do not add up: a label is missing or there twice (a bug); --dir keeps the stores for a look")
	case res.Lost > 0:
		return lossError{withHint(
			fmt.Errorf("%d events are lost: they came after the windows of their impressions had closed, and are in no label", res.Lost),
			"ctrloop sql --dir DIR --question late lists them; replay the logs into a new folder in the order of their times "+
				"(--sort), all but the last with --keep-open")}
	case res.RejectedShare() > float64(c.MaxRejects):
		return lossError{withHint(
			fmt.Errorf("%d of %d rows were rejected, %.4g %%: more than the %.4g %% of --max-rejects",
				res.Rejected, res.Rows, 100*res.RejectedShare(), 100*float64(c.MaxRejects)),
			"--rejects FILE lists them; mend the log, or allow more with --max-rejects")}
	}
	return nil
}

// rejects shows the first rows that were not taken and writes all of them to a file, if one is wanted.
type rejects struct {
	file  *os.File
	buf   *bufio.Writer
	enc   *json.Encoder
	first []replay.Refusal
	total int64
	err   error
}

// shownRejects is how many rejected rows are spelled out on the screen.
const shownRejects = 10

func newRejects(path string) (*rejects, error) {
	r := &rejects{}
	if path == "" {
		return r, nil
	}
	var err error
	if r.file, err = os.Create(path); err != nil {
		return nil, fmt.Errorf("file for rejected rows: %w", err)
	}
	r.buf = bufio.NewWriter(r.file)
	r.enc = json.NewEncoder(r.buf)
	r.enc.SetEscapeHTML(false)
	return r, nil
}

func (r *rejects) add(v replay.Refusal) {
	r.total++
	if len(r.first) < shownRejects {
		r.first = append(r.first, v)
	}
	if r.enc != nil && r.err == nil {
		r.err = r.enc.Encode(v)
	}
}

func (r *rejects) print(w io.Writer) {
	for _, v := range r.first {
		fmt.Fprintf(w, "rejected %s, line %d: %s: %s\n", v.File, v.Line, v.Reason, v.Detail)
	}
	if more := r.total - int64(len(r.first)); more > 0 {
		fmt.Fprintf(w, "rejected %d more\n", more)
	}
}

// Close ends the file.
func (r *rejects) Close() error {
	if r.file == nil {
		return nil
	}
	if err := errors.Join(r.err, r.buf.Flush(), r.file.Close()); err != nil {
		return fmt.Errorf("file of rejected rows: %w", err)
	}
	return nil
}

func printReplay(w io.Writer, r replay.Result) {
	fmt.Fprintf(w, "%d rows: %d impressions, %d clicks; %d rejected%s\n", r.Rows, r.Impressions, r.Clicks, r.Rejected, byReason(r))
	fmt.Fprintf(w, "labels: %d positive, %d final negative; CTR of the log's time in the warehouse %.4f %%\n",
		r.Positive, r.FinalNegative, 100*r.CTR)
	fmt.Fprintf(w, "repeated %d (the store had them already), lost %d, clicks without impression %d\n", r.Repeated, r.Lost, r.Orphans)
	if r.Waiting > 0 {
		fmt.Fprintf(w, "%d events wait for the next log\n", r.Waiting)
	}
	ledger := "closed"
	if !r.LedgerOK {
		ledger = "OPEN"
	}
	fmt.Fprintf(w, "ledger %s; warehouse %d impressions, audit mismatches %d; %.1f s\n", ledger, r.WarehouseRows, r.AuditMismatch, r.Seconds)
}

func byReason(r replay.Result) string {
	if len(r.Rejects) == 0 {
		return ""
	}
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(r.Rejects)) {
		parts = append(parts, fmt.Sprintf("%s %d", reason, r.Rejects[reason]))
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
