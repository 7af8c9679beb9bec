package slurm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"ctrloop/trainer-bridge/runner"
)

// Config of the runner.
type Config struct {
	// Address of slurmrestd: http://host:6820.
	Address string `yaml:"address,omitempty"`
	// User that jobs run as, the one of the token.
	User string `yaml:"user,omitempty"`
	// TokenFile holds a JWT (scontrol token); it is read for every request, since tokens run out.
	TokenFile string `yaml:"token_file,omitempty"`
	// Partition of jobs; empty: the cluster's default.
	Partition string `yaml:"partition,omitempty"`
	// Account that jobs are charged to; empty: the user's default.
	Account string `yaml:"account,omitempty"`
	// QOS of jobs; empty: the default.
	QOS string `yaml:"qos,omitempty"`
	// TimeLimit of a job; 0: the partition's. Progress has a limit of its own (trainer.timeout).
	TimeLimit time.Duration `yaml:"time_limit,omitempty"`
	// Path is the PATH of jobs on the cluster's machines.
	Path string `yaml:"path,omitempty"`
}

// DefaultPath of jobs.
const DefaultPath = "/usr/local/bin:/usr/bin:/bin"

// Problems of the section, each with its key.
func (c Config) Problems() (errs []error) {
	if err := runner.CheckURL(c.Address); err != nil {
		errs = append(errs, fmt.Errorf("address: %w", err))
	}
	if c.User == "" {
		errs = append(errs, errors.New("user: want the user that jobs run as"))
	}
	if c.TokenFile == "" {
		errs = append(errs, errors.New("token_file: want a file with a token (scontrol token username=... lifespan=...)"))
	}
	if c.TimeLimit < 0 || c.TimeLimit > 0 && c.TimeLimit < time.Minute {
		errs = append(errs, fmt.Errorf("time_limit: %v: want 0, or at least 1m: Slurm counts in minutes", c.TimeLimit))
	}
	return errs
}

// api is the version of the API; Slurm 22.05 to 24.05 have it.
const api = "/slurm/v0.0.38"

// Cluster is a Slurm cluster.
type Cluster struct {
	cfg    Config
	client *http.Client
}

var _ runner.Cluster = (*Cluster)(nil)

// New makes a client; it asks nothing yet.
func New(cfg Config) *Cluster {
	cfg.Address = strings.TrimRight(cfg.Address, "/")
	if cfg.Path == "" {
		cfg.Path = DefaultPath
	}
	return &Cluster{cfg: cfg, client: &http.Client{}}
}

// submission is the body of POST /job/submit.
type submission struct {
	Script string     `json:"script"`
	Job    properties `json:"job"`
}

// properties of a job.
type properties struct {
	Name        string            `json:"name"`
	Comment     string            `json:"comment"`
	Dir         string            `json:"current_working_directory"`
	Output      string            `json:"standard_output"`
	Environment map[string]string `json:"environment"` // obligatory
	Requeue     bool              `json:"requeue"`     // by Slurm itself: no, the bridge tries again
	Partition   string            `json:"partition,omitempty"`
	Account     string            `json:"account,omitempty"`
	QOS         string            `json:"qos,omitempty"`
	Minutes     int               `json:"time_limit,omitempty"`
	CPUs        int               `json:"cpus_per_task,omitempty"`
	Megabytes   int64             `json:"memory_per_node,omitempty"`
	GPUs        string            `json:"gres,omitempty"`
}

// reply is what all answers have.
type reply struct {
	Errors []problem `json:"errors"`
	JobID  int       `json:"job_id"`
	Jobs   []job     `json:"jobs"`
}

type problem struct {
	Text        string `json:"error"`
	Description string `json:"description"`
	Number      int    `json:"error_number"`
	Code        int    `json:"error_code"` // the same, of a submission
}

func (p problem) number() int { return max(p.Number, p.Code) }

func (r reply) problems() string {
	var all []string
	for _, p := range r.Errors {
		text := p.Text
		if p.Description != "" && p.Description != p.Text {
			text += " (" + p.Description + ")"
		}
		all = append(all, fmt.Sprintf("%s [%d]", strings.TrimSpace(text), p.number()))
	}
	return strings.Join(all, "; ")
}

// job is the part of a job that is read.
type job struct {
	ID       int    `json:"job_id"`
	Name     string `json:"name"`
	State    string `json:"job_state"`
	Reason   string `json:"state_reason"`
	ExitCode int    `json:"exit_code"` // a wait status
	Submit   int64  `json:"submit_time"`
}

// Submit makes a task unless there is one of its name. Between the look and the submission another bridge, or an earlier request
// of this one, may make one as well: the task itself takes care that only the first runs.
func (c *Cluster) Submit(ctx context.Context, t runner.Task) error {
	if _, err := c.find(ctx, t.Name); !errors.Is(err, runner.ErrUnknown) {
		return err // nil: it is there
	}
	status, r, raw, err := c.call(ctx, http.MethodPost, "/job/submit", submission{
		Script: "#!/bin/sh\nexec sh '" + strings.ReplaceAll(t.Script, "'", `'\''`) + "'\n",
		Job: properties{
			Name: t.Name, Comment: comment(t.Labels), Dir: t.Dir, Output: t.Dir + "/slurm-%j.log",
			Environment: map[string]string{"PATH": c.cfg.Path},
			Partition:   c.cfg.Partition, Account: c.cfg.Account, QOS: c.cfg.QOS, Minutes: int(math.Ceil(c.cfg.TimeLimit.Minutes())),
			CPUs: int(math.Ceil(t.Resources.CPUs)), Megabytes: (t.Resources.MemoryBytes + 1<<20 - 1) >> 20, GPUs: gpus(t.Resources.GPUs),
		},
	})
	switch {
	case err != nil:
		return fmt.Errorf("submit to Slurm: %w", err)
	case status == http.StatusOK && r.JobID > 0: // errors beside an id: it waits, and says why when it is looked at
		return nil
	case status == http.StatusBadRequest, slices.ContainsFunc(r.Errors, func(p problem) bool { return slices.Contains(refusals, p.number()) }):
		return fmt.Errorf("%w: Slurm answers %d: %s", runner.ErrRefused, status, r.problems())
	}
	return fmt.Errorf("submit to Slurm: %w", unexpected(status, r, raw))
}

func gpus(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("gpu:%d", n)
}

func comment(labels map[string]string) string {
	return fmt.Sprintf("ctrloop job %s (%s)", labels["job"], labels["kind"])
}

// Error numbers of Slurm, from slurm_errno.h.
const errInvalidJobID = 2017

// refusals are errors that a submission meets again, beside all that is answered with 400: a partition, account, size or
// environment that Slurm does not take.
var refusals = []int{
	2000, // ESLURM_INVALID_PARTITION_NAME
	2003, // ESLURM_JOB_MISSING_REQUIRED_PARTITION_GROUP
	2005, // ESLURM_TOO_MANY_REQUESTED_CPUS
	2014, // ESLURM_REQUESTED_NODE_CONFIG_UNAVAILABLE
	2015, // ESLURM_REQUESTED_PART_CONFIG_UNAVAILABLE
	2044, // ESLURM_INVALID_TASK_MEMORY
	2045, // ESLURM_INVALID_ACCOUNT
	2051, // ESLURM_INVALID_TIME_LIMIT
	2066, // ESLURM_INVALID_QOS
	2072, // ESLURM_INVALID_GRES
	2115, // ESLURM_INVALID_TRES
	2127, // ESLURM_ENVIRONMENT_MISSING
}

// Look says where a task is.
func (c *Cluster) Look(ctx context.Context, name string) (runner.Status, error) {
	j, err := c.find(ctx, name)
	if err != nil {
		return runner.Status{}, err
	}
	return j.status()
}

// find returns the job of a name. Of several, the one that is furthest: a copy that came later ends at once, see Submit.
func (c *Cluster) find(ctx context.Context, name string) (job, error) {
	status, r, raw, err := c.call(ctx, http.MethodGet, "/jobs", nil)
	switch {
	case err != nil:
		return job{}, fmt.Errorf("ask Slurm for %s: %w", name, err)
	case status != http.StatusOK || len(r.Errors) > 0:
		return job{}, fmt.Errorf("ask Slurm for %s: %w", name, unexpected(status, r, raw))
	}
	var found []job
	for _, j := range r.Jobs {
		if j.Name == name {
			found = append(found, j)
		}
	}
	if len(found) == 0 {
		return job{}, fmt.Errorf("%w: %s", runner.ErrUnknown, name)
	}
	return slices.MinFunc(found, func(a, b job) int {
		if d := a.rank() - b.rank(); d != 0 {
			return d
		}
		return a.ID - b.ID
	}), nil
}

// rank orders jobs of one name: what runs, what ended by itself, what waits, and what found the run taken.
func (j job) rank() int {
	switch s, _ := j.status(); {
	case s.State == runner.Running:
		return 0
	case s.State == runner.Waiting:
		return 2
	case s.Exit == runner.ExitTaken:
		return 3
	}
	return 1
}

func (j job) status() (runner.Status, error) {
	s := runner.Status{State: runner.Failed, Reason: j.State}
	if j.Reason != "" && j.Reason != "None" {
		s.Reason += ": " + j.Reason
	}
	switch j.State {
	case "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD":
		s.State = runner.Waiting
	case "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING":
		s.State = runner.Running
	case "COMPLETED":
		s.State = runner.Succeeded
	case "FAILED":
		if j.Reason == "BadConstraints" { // it was refused, and is a job all the same
			s.Cause = runner.Unstarted
			return s, nil
		}
		s.Exit = runner.WaitStatus(j.ExitCode)
	case "CANCELLED", "REVOKED":
		s.Cause = runner.Stopped
	case "PREEMPTED":
		s.Cause = runner.Preempted
	case "OUT_OF_MEMORY":
		s.Cause = runner.Memory
	case "TIMEOUT", "DEADLINE":
		s.Cause = runner.Deadline
	case "NODE_FAIL":
		s.Cause = runner.Lost
	case "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL":
		s.Cause = runner.Unstarted
	default:
		return s, fmt.Errorf("Slurm says state %q, which this release does not know", j.State)
	}
	return s, nil
}

// Stop asks for the end of a task.
func (c *Cluster) Stop(ctx context.Context, name string) error {
	j, err := c.find(ctx, name)
	if errors.Is(err, runner.ErrUnknown) {
		return nil
	}
	if err != nil {
		return err
	}
	if s, err := j.status(); err == nil && s.State != runner.Running && s.State != runner.Waiting {
		return nil
	}
	status, r, raw, err := c.call(ctx, http.MethodDelete, fmt.Sprintf("/job/%d", j.ID), nil)
	switch {
	case err != nil:
		return fmt.Errorf("stop %s on Slurm: %w", name, err)
	case status != http.StatusOK && !r.unknownJob():
		return fmt.Errorf("stop %s on Slurm: %w", name, unexpected(status, r, raw))
	}
	return nil
}

func (r reply) unknownJob() bool {
	return slices.ContainsFunc(r.Errors, func(p problem) bool { return p.number() == errInvalidJobID })
}

// Log writes nothing: Slurm keeps no output, it goes into the job's folder (slurm-ID.log), where the bridge reads.
func (c *Cluster) Log(ctx context.Context, name string, _ io.Writer) error {
	_, err := c.find(ctx, name)
	return err
}

func (c *Cluster) call(ctx context.Context, method, path string, body any) (int, reply, []byte, error) {
	token, err := runner.Token(c.cfg.TokenFile)
	if err != nil {
		return 0, reply{}, nil, err
	}
	header := http.Header{}
	header.Set("X-SLURM-USER-NAME", c.cfg.User)
	header.Set("X-SLURM-USER-TOKEN", token)
	status, raw, err := runner.Call(ctx, c.client, method, c.cfg.Address+api+path, header, body)
	if err != nil {
		return 0, reply{}, nil, err
	}
	var r reply
	if err := json.Unmarshal(raw, &r); err != nil && status == http.StatusOK {
		return status, r, raw, fmt.Errorf("answer of Slurm: %w in %s", err, runner.Words(raw))
	}
	return status, r, raw, nil
}

func unexpected(status int, r reply, raw []byte) error {
	if text := r.problems(); text != "" {
		return fmt.Errorf("it answers %d: %s", status, text)
	}
	return fmt.Errorf("it answers %d: %s", status, runner.Words(raw))
}
