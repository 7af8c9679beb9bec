package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ctrloop/schemas/control"
)

// JobCmd is `ctrloop job`.
type JobCmd struct {
	Ls     JobLsCmd     `cmd:"" help:"List the training jobs, the newest first."`
	Show   JobShowCmd   `cmd:"" help:"Show one job: what it is of, where it is, and why it failed."`
	Cancel JobCancelCmd `cmd:"" help:"End a job that waits or runs. Its cycle has failed; what it was to learn is still to be learned."`
	Retry  JobRetryCmd  `cmd:"" help:"Let a job that has failed, or was cancelled, queue again."`
}

// JobLsCmd is `ctrloop job ls`.
type JobLsCmd struct {
	instanceFlags
	State control.JobState `help:"Only those in a state: ${enum}." enum:"queued,running,succeeded,failed," default:"" placeholder:"STATE"`
	Limit int              `help:"List at most so many; 0: all." default:"50"`
}

// Run lists them.
func (c *JobLsCmd) Run(ctx context.Context, out *output) error {
	raw, err := c.at(ctx, http.MethodGet, "/v1/jobs", nil)
	if err != nil {
		return err
	}
	var got struct {
		Jobs []control.JobStatus `json:"jobs"`
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	got.Jobs = slices.DeleteFunc(got.Jobs, func(j control.JobStatus) bool { return c.State != "" && j.State != c.State })
	if c.Limit > 0 {
		got.Jobs = got.Jobs[:min(len(got.Jobs), c.Limit)]
	}
	if c.JSON {
		return out.printJSON(got)
	}
	t := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "job\tkind\tstate\tattempt\tqueued\tstarted\tended\twhy")
	for _, j := range got.Jobs {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n",
			j.ID, j.Kind, j.State, j.Update.Attempt, utc(j.Queued), utc(j.Started), utc(j.Finished), failureOf(j))
	}
	return t.Flush()
}

// failureOf says in one line why the last attempt of a job failed; empty: it did not.
func failureOf(j control.JobStatus) string {
	if j.Update.Class == "" {
		return ""
	}
	line, _, _ := strings.Cut(j.Update.Error, "\n")
	return j.Update.Class + ": " + line
}

// utc is a time for a table.
func utc(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.DateTime)
}

// JobShowCmd is `ctrloop job show`.
type JobShowCmd struct {
	instanceFlags
	ID string `arg:"" help:"The job."`
}

// Run shows it.
func (c *JobShowCmd) Run(ctx context.Context, out *output) error {
	raw, err := c.at(ctx, http.MethodGet, "/v1/jobs/"+url.PathEscape(c.ID), nil)
	if err != nil {
		return err
	}
	if c.JSON {
		return printRaw(out, raw)
	}
	return printJob(out, raw)
}

func printJob(out *output, raw []byte) error {
	var j control.JobStatus
	if err := json.Unmarshal(raw, &j); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	t := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, strings.ReplaceAll(value, "\n", "\n\t"))
		}
	}
	line("job", j.ID)
	line("kind", j.Kind)
	line("state", string(j.State))
	line("because", j.Reason)
	line("data sets", strings.Join(j.Datasets, ", "))
	line("attempt", fmt.Sprint(j.Update.Attempt))
	line("queued", utc(j.Queued))
	line("started", utc(j.Started))
	line("ended", utc(j.Finished))
	if !j.NotBefore.IsZero() {
		line("tried again", "not before "+utc(j.NotBefore))
	}
	line("artifact", j.Update.Artifact)
	line("failure", cmp.Or(j.Update.Class, "none"))
	line("", j.Update.Error)
	line("specification", string(j.Spec))
	return t.Flush()
}

// JobCancelCmd is `ctrloop job cancel`.
type JobCancelCmd struct {
	switched
	ID string `arg:"" help:"The job."`
}

// Run cancels it.
func (c *JobCancelCmd) Run(ctx context.Context, out *output) error {
	return c.steer(ctx, out, c.ID, "cancel")
}

// JobRetryCmd is `ctrloop job retry`.
type JobRetryCmd struct {
	switched
	ID string `arg:"" help:"The job."`
}

// Run queues it.
func (c *JobRetryCmd) Run(ctx context.Context, out *output) error {
	return c.steer(ctx, out, c.ID, "retry")
}

// steer sends a command on a job and says where it is then.
func (s switched) steer(ctx context.Context, out *output, id, what string) error {
	raw, err := s.send(ctx, "/v1/jobs/"+url.PathEscape(id)+"/"+what)
	if err != nil {
		return err
	}
	if s.JSON {
		return printRaw(out, raw)
	}
	var j control.JobStatus
	if err := json.Unmarshal(raw, &j); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	_, err = fmt.Fprintf(out.stdout, "%s is %s after %d attempts\n", j.ID, j.State, j.Update.Attempt)
	return err
}
