package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ctrloop/internal/loopback"
	"ctrloop/internal/warehouse"

	"github.com/google/uuid"
)

// patience bounds each wait: a broker in a container on a busy machine takes its time.
const patience = 3 * time.Minute

// stack is the compose file's services, running.
type stack struct {
	t       *testing.T
	command []string // docker compose, with the file and the project
	env     []string
	ports   map[string]int // by variable of the compose file
}

// up brings services up from the images of local/images.env, on free ports and volumes of their own, and takes everything down
// with the test. It needs CTRLOOP_TEST_COMPOSE, the command of Docker Compose (make deploy-test), and skips without it.
func up(t *testing.T, services ...string) *stack {
	t.Helper()
	compose := strings.Fields(os.Getenv("CTRLOOP_TEST_COMPOSE"))
	if len(compose) == 0 {
		t.Skip("needs a container engine and the images: make container-engine deploy-test")
	}
	s := &stack{t: t, env: os.Environ(), ports: map[string]int{}}
	s.command = append(compose, "--env-file", "local/images.env", "-p", "ctrloop-test-"+strconv.Itoa(os.Getpid()), "-f", "compose.yaml")
	for _, port := range []string{"PORT_EDGE", "PORT_API", "PORT_CLICKHOUSE", "PORT_CLICKHOUSE_HTTP"} {
		free, err := loopback.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		s.ports[port] = free
		s.env = append(s.env, port+"="+strconv.Itoa(free))
	}
	model, err := filepath.Abs("../trainer-bridge/trainer/weights/prompt-base")
	if err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "MODEL_DIR="+model)
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := s.run("logs", "--no-color", "--tail", "15")
			t.Logf("what the services said:\n%s", logs)
		}
		if out, err := s.run("down", "--volumes", "--timeout", "30"); err != nil {
			t.Errorf("take the services down: %v: %s", err, out)
		}
	})
	if out, err := s.run(append([]string{"up", "-d", "--no-build"}, services...)...); err != nil {
		t.Fatalf("bring the services up: %v: %s", err, out)
	}
	return s
}

// run runs Docker Compose.
func (s *stack) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	args = append(s.command[1:len(s.command):len(s.command)], args...)
	cmd := exec.CommandContext(ctx, s.command[0], args...)
	cmd.Env = s.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// inspect asks the engine about the container of a service.
func (s *stack) inspect(service, format string) string {
	s.t.Helper()
	id, err := s.run("ps", "-q", service)
	if err != nil {
		s.t.Fatalf("container of %s: %v: %s", service, err, id)
	}
	cmd := exec.CommandContext(s.t.Context(), "docker", "inspect", "-f", format, strings.TrimSpace(id))
	cmd.Env = s.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("inspect %s: %v: %s", service, err, out)
	}
	return strings.TrimSpace(string(out))
}

// await asks again until there is an answer of yes.
func (s *stack) await(what string, ask func() (bool, string)) {
	s.t.Helper()
	began := time.Now()
	for {
		yes, said := ask()
		if yes {
			s.t.Logf("%5.1f s: %s", time.Since(began).Seconds(), what)
			return
		}
		select {
		case <-s.t.Context().Done():
			s.t.Fatal(s.t.Context().Err())
		case <-time.After(200 * time.Millisecond): // another process: there is nothing to wait on
		}
		if time.Since(began) > patience {
			s.t.Fatalf("%s: not within %v; last: %s", what, patience, said)
		}
	}
}

// healthy waits until the health check of the compose file passes.
func (s *stack) healthy(services ...string) {
	s.t.Helper()
	for _, service := range services {
		s.await(service+" is healthy", func() (bool, string) {
			state := s.inspect(service, "{{.State.Health.Status}}")
			return state == "healthy", state + " " + s.inspect(service, "{{range .State.Health.Log}}{{.Output}}{{end}}")
		})
	}
}

// kill ends the first process of a service by signal 9 as a crash would, not by the engine: that would take it for a wish.
func (s *stack) kill(service string) {
	s.t.Helper()
	pid, err := strconv.Atoi(s.inspect(service, "{{.State.Pid}}"))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatalf("kill %s (the engine must run on this machine, and the test as root): %v", service, err)
	}
	s.await(service+" was killed and runs again", func() (bool, string) {
		now := s.inspect(service, "{{.State.Status}} {{.State.Pid}}")
		return strings.HasPrefix(now, "running ") && now != fmt.Sprintf("running %d", pid), now
	})
}

// send gives an event to the published edge until it is acknowledged.
func (s *stack) send(event string) {
	s.t.Helper()
	url := "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(s.ports["PORT_EDGE"])) + "/v1/events"
	s.await("event acknowledged", func() (bool, string) {
		status, body, err := s.ask(http.MethodPost, url, event)
		if status >= 400 && status < 500 && status != http.StatusTooManyRequests {
			s.t.Fatalf("the edge refuses %s: %d: %s", event, status, body)
		}
		return status == http.StatusOK || status == http.StatusAccepted, fmt.Sprint(status, " ", body, " ", err)
	})
}

// ask makes one request.
func (s *stack) ask(method, url, body string) (status int, answer string, err error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	rq, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	rq.Header.Set("Content-Type", "application/json")
	r, err := http.DefaultClient.Do(rq)
	if err != nil {
		return 0, "", err
	}
	raw, err := io.ReadAll(r.Body)
	return r.StatusCode, string(raw), errors.Join(err, r.Body.Close())
}

// impression sends one and returns its id and time.
func (s *stack) impression() (id string, ms int64) {
	s.t.Helper()
	id, ms = uuid.Must(uuid.NewV7()).String(), time.Now().UnixMilli()
	const rest = `"user":"u","product":"p","creative":"c","placement":"home","position":1,"propensity":0.5`
	s.send(fmt.Sprintf(`{"type":"impression","id":%q,"time_ms":%d,%s}`, id, ms, rest))
	return id, ms
}

// click sends one for an impression.
func (s *stack) click(impression string, ms int64) {
	s.t.Helper()
	s.send(fmt.Sprintf(`{"type":"click","id":%q,"impression_id":%q,"time_ms":%d}`, "click-"+impression[24:], impression, ms))
}

// labelled waits for the one label of an impression, asked at the published port of the warehouse.
func (s *stack) labelled(impression string) {
	s.t.Helper()
	const form = "clickhouse://ctrloop:ctrloop@127.0.0.1:%d/ctrloop?http_port=%d"
	dsn := fmt.Sprintf(form, s.ports["PORT_CLICKHOUSE"], s.ports["PORT_CLICKHOUSE_HTTP"])
	const question = "SELECT kind, clicked, count() AS labels FROM labels WHERE impression_id = {id:String} GROUP BY ALL"
	s.await("label of "+impression, func() (bool, string) {
		var out bytes.Buffer
		id, limits := map[string]string{"id": impression}, warehouse.Limits{Timeout: 10 * time.Second}
		err := warehouse.Ask(s.t.Context(), dsn, question, id, warehouse.FormatTSV, &out, limits)
		return out.String() == "kind\tclicked\tlabels\npositive\t1\t1\n", fmt.Sprint(out.String(), err)
	})
}

// TestComposeTurnsEventsIntoLabels: what an advertiser's system sees of the compose file. Events go in at the published edge and
// labels come out of the published warehouse, also of what was under way when the join was killed, and when the broker was; the
// warehouse then holds each label once.
func TestComposeTurnsEventsIntoLabels(t *testing.T) {
	s := up(t, "ctrloop", "serving")
	s.healthy("kafka", "clickhouse", "ctrloop")
	first, ms := s.impression()
	s.click(first, ms+300)
	s.labelled(first)

	open, ms := s.impression()
	s.kill("ctrloop")
	s.healthy("ctrloop")
	s.click(open, ms+400)
	s.labelled(open)

	across, ms := s.impression()
	s.kill("kafka")
	s.click(across, ms+500)
	s.labelled(across)
	s.healthy("kafka", "ctrloop")

	s.await("the audit finds every label once", func() (bool, string) {
		out, err := s.run("exec", "-T", "ctrloop", "ctrloop", "audit")
		return err == nil, out
	})

	console := "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(s.ports["PORT_API"])) + "/"
	s.await("the console answers, though no model server does", func() (bool, string) {
		status, body, err := s.ask(http.MethodGet, console, "")
		return status == http.StatusOK, fmt.Sprint(status, " ", body, " ", err)
	})
}
