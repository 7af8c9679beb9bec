package ray

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"ctrloop/trainer-bridge/runner"
)

// Config of the runner.
type Config struct {
	// Address of the dashboard, which has the Jobs API: http://head:8265.
	Address string `yaml:"address,omitempty"`
	// TokenFile holds the token of a cluster with RAY_AUTH_MODE=token; it is read for every request. Empty: none is sent.
	TokenFile string `yaml:"token_file,omitempty"`
}

// Problems of the section, each with its key.
func (c Config) Problems() (errs []error) {
	if err := runner.CheckURL(c.Address); err != nil {
		errs = append(errs, fmt.Errorf("address: %w", err))
	}
	return errs
}

// Cluster is a Ray cluster.
type Cluster struct {
	cfg    Config
	client *http.Client
}

var _ runner.Cluster = (*Cluster)(nil)

// New makes a client; it asks nothing yet.
func New(cfg Config) *Cluster {
	cfg.Address = strings.TrimRight(cfg.Address, "/")
	return &Cluster{cfg: cfg, client: &http.Client{}}
}

// submission is the body of POST /api/jobs/.
type submission struct {
	Entrypoint   string            `json:"entrypoint"`
	SubmissionID string            `json:"submission_id"`
	Metadata     map[string]string `json:"metadata"`
	RuntimeEnv   runtimeEnv        `json:"runtime_env"`
	CPUs         float64           `json:"entrypoint_num_cpus,omitempty"`
	GPUs         int               `json:"entrypoint_num_gpus,omitempty"`
	Memory       int64             `json:"entrypoint_memory,omitempty"` // bytes
}

type runtimeEnv struct {
	EnvVars map[string]string `json:"env_vars"`
}

// details are the part of a job's answer that is read.
type details struct {
	Status    string `json:"status"`
	Message   string `json:"message"`
	ErrorType string `json:"error_type"`
	ExitCode  *int   `json:"driver_exit_code"`
}

// Submit makes a task unless there is one of its name.
func (c *Cluster) Submit(ctx context.Context, t runner.Task) error {
	if _, err := c.Look(ctx, t.Name); !errors.Is(err, runner.ErrUnknown) {
		return err // nil: it is there
	}
	status, answer, err := c.call(ctx, http.MethodPost, "/api/jobs/", submission{
		Entrypoint: "sh '" + strings.ReplaceAll(t.Script, "'", `'\''`) + "'", SubmissionID: t.Name, Metadata: t.Labels,
		RuntimeEnv: runtimeEnv{map[string]string{"RAY_JOB_STOP_WAIT_TIME_S": strconv.Itoa(int(math.Ceil(t.Grace.Seconds())))}},
		CPUs:       t.Resources.CPUs, GPUs: t.Resources.GPUs, Memory: t.Resources.MemoryBytes,
	})
	switch {
	case err != nil:
		return fmt.Errorf("submit to Ray: %w", err)
	case status == http.StatusOK, strings.Contains(string(answer), "Job with submission_id "+t.Name+" already exists"):
		return nil // by now: another request, or an earlier one of ours whose answer was lost
	case status == http.StatusBadRequest || status == http.StatusUnprocessableEntity:
		return fmt.Errorf("%w: Ray answers %d: %s", runner.ErrRefused, status, lastLine(answer))
	}
	return fmt.Errorf("submit to Ray: %w", unexpected(status, answer))
}

// Look says where a task is.
func (c *Cluster) Look(ctx context.Context, name string) (runner.Status, error) {
	status, answer, err := c.call(ctx, http.MethodGet, "/api/jobs/"+url.PathEscape(name), nil)
	switch {
	case err != nil:
		return runner.Status{}, fmt.Errorf("ask Ray for %s: %w", name, err)
	case status == http.StatusNotFound && strings.Contains(string(answer), name):
		return runner.Status{}, fmt.Errorf("%w: %s", runner.ErrUnknown, name)
	case status != http.StatusOK:
		return runner.Status{}, fmt.Errorf("ask Ray for %s: %w", name, unexpected(status, answer))
	}
	var d details
	if err := json.Unmarshal(answer, &d); err != nil {
		return runner.Status{}, fmt.Errorf("ask Ray for %s: %w in %s", name, err, runner.Words(answer))
	}
	return d.status()
}

func (d details) status() (runner.Status, error) {
	s := runner.Status{Reason: d.Status + ": " + runner.Words([]byte(d.Message))}
	switch d.Status {
	case "PENDING":
		s.State = runner.Waiting
	case "RUNNING":
		s.State = runner.Running
	case "SUCCEEDED":
		s.State = runner.Succeeded
	case "STOPPED":
		s.State, s.Cause = runner.Failed, runner.Stopped
	case "FAILED":
		s.State = runner.Failed
		switch {
		case d.ExitCode != nil:
			s.Exit = runner.Exit(*d.ExitCode)
		case strings.HasPrefix(d.ErrorType, "JOB_SUPERVISOR_ACTOR_START_"): // ..._TIMEOUT, ..._FAILURE
			s.Cause = runner.Unstarted
		case strings.HasPrefix(d.ErrorType, "JOB_SUPERVISOR_ACTOR_"): // ..._DIED, ..._UNSCHEDULABLE
			s.Cause = runner.Lost
		}
	default:
		return s, fmt.Errorf("Ray says status %q, which this release does not know", d.Status)
	}
	return s, nil
}

// Stop asks for the end of a task.
func (c *Cluster) Stop(ctx context.Context, name string) error {
	status, answer, err := c.call(ctx, http.MethodPost, "/api/jobs/"+url.PathEscape(name)+"/stop", nil)
	switch {
	case err != nil:
		return fmt.Errorf("stop %s on Ray: %w", name, err)
	case status == http.StatusOK || status == http.StatusNotFound:
		return nil
	}
	return fmt.Errorf("stop %s on Ray: %w", name, unexpected(status, answer))
}

// Log writes what Ray has kept of a task's output.
func (c *Cluster) Log(ctx context.Context, name string, w io.Writer) error {
	status, answer, err := c.call(ctx, http.MethodGet, "/api/jobs/"+url.PathEscape(name)+"/logs", nil)
	switch {
	case err != nil:
		return fmt.Errorf("log of %s on Ray: %w", name, err)
	case status == http.StatusNotFound:
		return fmt.Errorf("%w: %s", runner.ErrUnknown, name)
	case status != http.StatusOK:
		return fmt.Errorf("log of %s on Ray: %w", name, unexpected(status, answer))
	}
	var l struct {
		Logs string `json:"logs"`
	}
	if err := json.Unmarshal(answer, &l); err != nil {
		return fmt.Errorf("log of %s on Ray: %w", name, err)
	}
	_, err = io.WriteString(w, l.Logs)
	return err
}

func (c *Cluster) call(ctx context.Context, method, path string, body any) (int, []byte, error) {
	header := http.Header{}
	token, err := runner.Token(c.cfg.TokenFile)
	if err != nil {
		return 0, nil, err
	}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	return runner.Call(ctx, c.client, method, c.cfg.Address+path, header, body)
}

func unexpected(status int, answer []byte) error {
	return fmt.Errorf("it answers %d: %s", status, lastLine(answer))
}

// lastLine of an answer: Ray's errors are Python tracebacks, which end with what happened.
func lastLine(answer []byte) string {
	text := strings.Trim(string(answer), " .\n")
	return runner.Words([]byte(text[strings.LastIndexByte(text, '\n')+1:]))
}
