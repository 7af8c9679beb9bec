package trainerbridge

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/schemas/control"
	"ctrloop/trainer-bridge/runner"
)

// The rings hold Remote against real clusters. A make target sets each up and names it in the environment; without, they skip.

// ring is a real cluster on this machine.
type ring struct {
	cluster runner.Cluster
	// closed, while it is set, answers every call with 502, as a proxy does whose server is down.
	gate *atomic.Bool
	// want makes a job ask for what the cluster does not have, and is the class that this ends with.
	want      func(*runner.Resources)
	wantClass FailureClass
	// forget ends the cluster and all it runs, and starts it anew without a memory.
	forget func()
}

// behind returns the address of a proxy in front of a server, and what closes it.
func behind(t *testing.T, server string) (address string, gate *atomic.Bool) {
	t.Helper()
	to, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.ErrorLog = log.New(io.Discard, "", 0) // what it says of a server that is down is what the tests are about
	gate = &atomic.Bool{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if gate.Load() {
			http.Error(w, "the server is down", http.StatusBadGateway)
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return "http://" + l.Addr().String(), gate
}

// trial is a job on a ring whose "Python" is a shell script: the contract is argv, files and exit status.
type trial struct {
	*Remote
	job control.JobStatus
	out string
}

func (r ring) trial(t *testing.T, id, python string) trial {
	t.Helper()
	l, job := local(t, python)
	job.ID, job.Kind = id, "reward"
	out := filepath.Join(l.JobDir(id), "out")
	return trial{&Remote{
		Inputs: l.Inputs, Cluster: r.cluster, Interval: 500 * time.Millisecond, Timeout: 5 * time.Minute, StartTimeout: 10 * time.Minute,
		LostAfter: 5 * time.Second, StopGrace: 20 * time.Second, Log: zerolog.New(zerolog.NewTestWriter(t)),
	}, job, out}
}

func (tr trial) file(name string) string {
	raw, err := os.ReadFile(filepath.Join(tr.out, name))
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// await waits for a file of the job's folder out.
func (tr trial) await(t *testing.T, name string) {
	t.Helper()
	for range 3000 {
		if fileExists(filepath.Join(tr.out, name)) {
			return
		}
		<-time.After(100 * time.Millisecond)
	}
	t.Fatalf("no %s after five minutes", name)
}

func (tr trial) end(t *testing.T, ends chan ending, want FailureClass) ending {
	t.Helper()
	began := time.Now()
	e := <-ends
	t.Logf("ended after %v: class %q, %v", time.Since(began).Round(100*time.Millisecond), e.class(), e.err)
	if e.class() != want || (e.err == nil) != (want == "") {
		t.Errorf("class %q, want %q: %v", e.class(), want, e.err)
	}
	return e
}

const (
	// works begins, and ends well once it is told to.
	works = `echo run >>"$out/runs"; echo learning; touch "$out/ready"; while [ ! -e "$out/go" ]; do sleep 0.1; done
echo '{}' >"$out/metrics.json"`
	// saves begins, and has a checkpoint when it is told to stop.
	saves = `trap 'echo saved >"$out/checkpoint"; exit 5' TERM; touch "$out/ready"; while :; do sleep 0.1; done`
)

func (r ring) test(t *testing.T) {
	t.Run("together", func(t *testing.T) {
		t.Run("a bridge that starts again finds its run, through an outage", func(t *testing.T) {
			t.Parallel()
			tr := r.trial(t, "adopted", works)
			ctx, die := context.WithCancel(t.Context())
			first := begin(ctx, tr.Remote, tr.job)
			tr.await(t, "ready")
			die()
			<-first
			again := *tr.Remote
			second := begin(t.Context(), &again, tr.job)
			r.gate.Store(true)
			<-time.After(3 * time.Second)
			r.gate.Store(false)
			if err := os.WriteFile(filepath.Join(tr.out, "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if e := tr.end(t, second, ""); e.out != tr.out || tr.file("runs") != "run\n" || tr.file("metrics.json") != "{}\n" {
				t.Errorf("%+v; runs %q", e, tr.file("runs"))
			}
			third := begin(t.Context(), &again, tr.job) // it has ended: no more than that is said
			if tr.end(t, third, ""); tr.file("runs") != "run\n" {
				t.Errorf("runs %q", tr.file("runs"))
			}
			var log strings.Builder
			if err := tr.Logs(t.Context(), tr.job, &log); err != nil || log.String() != "learning\n" {
				t.Errorf("log %q, %v", log.String(), err)
			}
		})
		for script, want := range map[string]FailureClass{
			"echo no pairs >&2; exit 6": FailEvidence, "exit 2": FailInput, "kill -9 $$": FailMemory,
		} {
			t.Run("fails: "+script, func(t *testing.T) {
				t.Parallel()
				tr := r.trial(t, fmt.Sprint("fails-", want), script)
				tr.end(t, begin(t.Context(), tr.Remote, tr.job), want)
			})
		}
		t.Run("is called off", func(t *testing.T) {
			t.Parallel()
			tr := r.trial(t, "cancelled", saves)
			ends := begin(t.Context(), tr.Remote, tr.job)
			tr.await(t, "ready")
			off := func() bool { return tr.Cancel(t.Context(), tr.job) == nil } // the outage above is everybody's
			eventually(t, "cancel", off)
			if tr.end(t, ends, FailCancelled); tr.file("checkpoint") != "saved\n" {
				t.Errorf("no time for a checkpoint: %s", tr.file("checkpoint"))
			}
			eventually(t, "cancel again", off)
		})
		t.Run("hangs", func(t *testing.T) {
			t.Parallel()
			tr := r.trial(t, "hangs", saves)
			tr.Timeout = 10 * time.Second
			if tr.end(t, begin(t.Context(), tr.Remote, tr.job), FailTimeout); tr.file("checkpoint") != "saved\n" {
				t.Errorf("no time for a checkpoint: %s", tr.file("checkpoint"))
			}
		})
		t.Run("never starts", func(t *testing.T) {
			t.Parallel()
			tr := r.trial(t, "waits", works)
			tr.StartTimeout = 5 * time.Second
			r.want(&tr.Resources)
			tr.end(t, begin(t.Context(), tr.Remote, tr.job), r.wantClass)
			if _, code := sh(t, tr.Remote, tr.job); r.wantClass == FailUnstarted && code != runner.ExitTaken {
				t.Errorf("it could start after all: %d", code)
			}
		})
		t.Run("is killed before it can leave a note", func(t *testing.T) {
			t.Parallel()
			tr := r.trial(t, "killed", `kill -9 $PPID; sleep 1`)
			tr.end(t, begin(t.Context(), tr.Remote, tr.job), FailMemory)
		})
	})
	t.Run("lost by its cluster", func(t *testing.T) {
		if r.forget == nil {
			t.Skip("this cluster does not forget")
		}
		tr := r.trial(t, "lost", works)
		ends := begin(t.Context(), tr.Remote, tr.job)
		tr.await(t, "ready")
		r.forget()
		tr.end(t, ends, FailLost)
		tr.job.Update.Run = 2
		ends = begin(t.Context(), tr.Remote, tr.job)
		tr.out = filepath.Join(tr.JobDir(tr.job.ID), "out-2")
		tr.await(t, "ready")
		if err := os.WriteFile(filepath.Join(tr.out, "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if e := tr.end(t, ends, ""); e.out != tr.out {
			t.Errorf("%+v", e)
		}
	})
}

// freePort returns a port of 127.0.0.1 that is free now.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// eventually asks until ok is true, for as long as a slow machine may need.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1200 {
		if ok() {
			return
		}
		<-time.After(250 * time.Millisecond)
	}
	t.Fatalf("%s: not after five minutes", what)
}
