// Package e2e tests the shipped binary from outside: its commands, its files, its HTTP, and what is left after
// kill -9. It knows nothing of the packages inside.
package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ctrloop/e2e/shipped"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "ctrloop-e2e-*")
	if err == nil {
		binary, err = shipped.Build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// ctrloop runs a command to its end.
func ctrloop(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// needEngine skips only where somebody said that the engine may be missing.
func needEngine(t *testing.T) {
	t.Helper()
	if out, stderr, code := ctrloop(t, "setup", "--check"); code != 0 {
		if os.Getenv("CTRLOOP_TEST_ALLOW_MISSING") == "1" {
			t.Skip("the embedded engine is not set up (CTRLOOP_TEST_ALLOW_MISSING=1)")
		}
		t.Fatalf("run `make setup` first: %s%s", out, stderr)
	}
}

// banditLog writes an Open Bandit log of n rows over a week with the given clicks, all inside.
func banditLog(t *testing.T, n, clicks int, seed uint64) string {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	clicked := map[int]bool{}
	for len(clicked) < clicks {
		clicked[r.IntN(n)] = true
	}
	dir := filepath.Join(t.TempDir(), "made-up")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString(",timestamp,item_id,position,click,propensity_score,user_feature_0\n")
	start := time.Date(2019, 11, 24, 0, 0, 0, 0, time.UTC)
	for i := range n {
		at := start.Add(time.Duration(float64(i) / float64(n) * float64(7*24*time.Hour)))
		click := 0
		if clicked[i] {
			click = 1
		}
		fmt.Fprintf(
			&b,
			"%d,%s,%d,%d,%d,0.0217,%x\n",
			i,
			at.Format("2006-01-02 15:04:05.000000-07:00"),
			r.IntN(46),
			1+r.IntN(3),
			click,
			r.Uint32(),
		)
	}
	path := filepath.Join(dir, "log.csv")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

type replayed struct {
	Rows, Impressions, Clicks, Positive, Late, Duplicate int64
	FinalNegative                                        int64 `json:"final_negative"`
	LedgerOK                                             bool  `json:"ledger_ok"`
	WarehouseRows                                        int64 `json:"warehouse_rows"`
	AuditMismatch                                        int64 `json:"audit_mismatch"`
}

func replay(t *testing.T, args ...string) replayed {
	t.Helper()
	file := filepath.Join(t.TempDir(), "result.json")
	if _, stderr, code := ctrloop(t, append([]string{"replay", "--json", file}, args...)...); code != 0 {
		t.Fatalf("replay: exit %d: %s", code, stderr)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r replayed
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return r
}

// sql returns the first column of the first row.
func sql(t *testing.T, dir, query string) string {
	t.Helper()
	out, stderr, code := ctrloop(t, "sql", "--dir", dir, "--format", "tsv", query)
	if code != 0 {
		t.Fatalf("sql: exit %d: %s", code, stderr)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return strings.Split(lines[len(lines)-1], "\t")[0]
}

func TestReplayCountsTwiceTheSame(t *testing.T) {
	needEngine(t)
	log := banditLog(t, 3000, 41, 7)
	dir := t.TempDir()
	r := replay(t, "--dir", dir, log)
	want := replayed{Rows: 3000, Impressions: 3000, Clicks: 41, Positive: 41, FinalNegative: 2959, LedgerOK: true, WarehouseRows: 3000}
	if r != want {
		t.Fatalf("%+v\nwant %+v", r, want)
	}
	again := replay(t, "--dir", dir, log)
	if again.Positive != 0 || again.FinalNegative != 0 || again.WarehouseRows != 3000 || again.AuditMismatch != 0 || !again.LedgerOK {
		t.Fatalf("the same log again must change nothing: %+v", again)
	}
	if got := sql(t, dir, "SELECT sum(clicked) FROM labels_latest"); got != "41" {
		t.Errorf("%s clicked impressions in the warehouse", got)
	}
	if got := sql(t, dir, "SELECT round(sum(ctr * impressions)) FROM ctr_by_creative"); got != "41" {
		t.Errorf("ctr_by_creative adds up to %s clicks", got)
	}
}

// TestTraceAfterReplay follows one clicked impression through the stores of a run that has ended.
func TestTraceAfterReplay(t *testing.T) {
	needEngine(t)
	dir := t.TempDir()
	replay(t, "--dir", dir, banditLog(t, 300, 9, 3))
	id := sql(t, dir, "SELECT toString(impression_id) FROM labels WHERE clicked = 1 LIMIT 1")
	out, stderr, code := ctrloop(t, "trace", "--dir", dir, "--json", id)
	var rep struct {
		State     string
		Steps     []struct{ What, Topic string }
		Warehouse []struct{ Kind string }
	}
	if err := json.Unmarshal([]byte(out), &rep); code != 0 || err != nil {
		t.Fatalf("exit %d, %v: %s%s", code, err, out, stderr)
	}
	var steps []string
	for _, s := range rep.Steps {
		if !strings.HasPrefix(s.Topic, "raw.") { // whose record times are those of the replay
			steps = append(steps, s.What)
		}
	}
	if got := strings.Join(steps, ", "); rep.State != "labelled" || got != "impression, click, label positive" || len(rep.Warehouse) != 1 ||
		rep.Warehouse[0].Kind != "positive" {
		t.Errorf("%s: %s", got, out)
	}
	out, _, _ = ctrloop(t, "trace", "--dir", dir, "--everywhere", id)
	if !strings.Contains(out, "impression received") || !strings.Contains(out, "kind=positive") {
		t.Error(out)
	}
}

func TestReplaySaysWhatIsWrong(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.csv")
	if err := os.WriteFile(bad, []byte("a,b\n1,2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"neither JSON lines nor an Open Bandit log": {"replay", bad},
		"no such file or directory":                 {"replay", "missing.csv"},
		"not inside the window":                     {"replay", "--delay-max", "2h", bad},
		"no service":                                {"up", "--target", "joyner"},
		"nothing is held out":                       {"demo", "--holdout-fraction", "0"},
	} {
		_, stderr, code := ctrloop(t, args...)
		if code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("%v: exit %d, %q lacks %q", args, code, stderr, want)
		}
	}
}

// TestReplaySurvivesKill kills the whole process at random moments of a replay, starts it again, and then
// holds the warehouse against the log.
func TestReplaySurvivesKill(t *testing.T) {
	needEngine(t)
	const rows, clicks = 60_000, 2_500
	log := banditLog(t, rows, clicks, 11)
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(5, 5))
	killed, longest := 0, 5*time.Second
	for range 5 {
		cmd := exec.Command(binary, "replay", "--dir", dir, log)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case <-done:
			longest /= 4 // it was faster than the kill
		case <-time.After(100*time.Millisecond + time.Duration(r.Int64N(int64(longest)))):
			killed++
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
		}
	}
	if killed == 0 {
		t.Fatal("nobody was killed: every run was faster, and nothing was tested")
	}
	last := replay(t, "--dir", dir, log)
	if last.WarehouseRows != rows || last.AuditMismatch != 0 || !last.LedgerOK {
		t.Errorf("after %d kills: %+v", killed, last)
	}
	if got := sql(t, dir, "SELECT count() FROM labels"); got != strconv.Itoa(rows) {
		t.Errorf("%s rows lie in the table, of %d impressions", got, rows)
	}
	if got := sql(t, dir, "SELECT sum(clicked) FROM labels_latest"); got != strconv.Itoa(clicks) {
		t.Errorf("%s clicked impressions of %d", got, clicks)
	}
	t.Logf("killed %d times", killed)
}

// instance is a running `ctrloop up`.
type instance struct {
	API, Edge, Admin, Kafka, ClickHouse string
}

func up(t *testing.T, dir string, args ...string) instance {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"up", "--dir", dir}, args...)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ended error
	done := make(chan struct{})
	go func() { ended = cmd.Wait(); close(done) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
			if ended != nil && !t.Failed() {
				t.Errorf("up on %v did not stop cleanly: %v\n%s", args, ended, log.String())
			}
		case <-time.After(45 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			t.Errorf("up on %v did not stop", args)
		}
	})
	deadline := time.Now().Add(2 * time.Minute)
	for time.Now().Before(deadline) {
		var i instance
		if raw, err := os.ReadFile(filepath.Join(dir, "run.json")); err == nil && json.Unmarshal(raw, &i) == nil && i.Admin != "" {
			return i
		}
		select {
		case <-done:
			t.Fatalf("up %v ended: %v\n%s", args, ended, log.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("up %v did not become ready", args)
	return instance{}
}

// TestServicesInProcessesOfTheirOwn runs ingest beside the broker in one process, the pairer beside the
// warehouse in another, join and sink in a third one that has both by address, and a second ingest in a fourth: the
// code paths of production.
func TestServicesInProcessesOfTheirOwn(t *testing.T) {
	needEngine(t)
	one, two, three, four := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	front := up(t, one, "--target", "ingest", "--config", write(t, "ingest: {clock: event, user_salt: salt}\nkafka: {retention: -1s}\n"))
	kafka := "kafka: {retention: -1s, brokers: ['" + front.Kafka + "']}\n"
	salt := "ingest: {user_salt: salt}\n"
	back := up(t, two, "--target", "pairer", "--config", write(t, kafka+salt))
	up(t, three, "--target", "joiner,sink", "--config", write(t, kafka+salt+"clickhouse: {dsn: '"+writerDSN(t, two, back.ClickHouse)+"'}\n"))
	beside := up(t, four, "--target", "ingest", "--config", write(t, kafka+"ingest: {clock: event, instance: ingest-1, user_salt: salt}\n"))
	edges := []string{front.Edge, beside.Edge}
	var events [2]strings.Builder // every other event goes to the other edge
	const n = 200
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	for i := range n {
		id := uuid7(base+int64(i)*1000, i)
		fmt.Fprintf(
			&events[i%2],
			`{"type":"impression","id":%q,"product":"p","creative":"c","placement":"home","position":1,"user":"u%d","propensity":1}`+"\n",
			id,
			i,
		)
		if i%10 == 0 {
			fmt.Fprintf(&events[i/10%2], `{"type":"click","id":"k%d","impression_id":%q,"time_ms":%d}`+"\n", i, id, base+int64(i)*1000+900)
		}
	}
	for i, edge := range edges {
		post(t, edge, events[i].String())
	}
	post(t, front.Edge, fmt.Sprintf(`{"type":"watermark","time_ms":%d}`, base+(3*time.Hour).Milliseconds()))
	deadline := time.Now().Add(time.Minute)
	got := ""
	for time.Now().Before(deadline) {
		if got = sql(t, two, "SELECT concat(toString(count()), '/', toString(sum(clicked))) FROM labels_latest"); got == "200/20" {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Errorf("labels/clicks are %s, want 200/20", got)
}

// TestStarvedIngestLosesNothing: one of two instances of ingest is stopped before it has read anything, the other one gets a
// promise three hours ahead. Nothing is late because a process was slow; what it holds comes when it goes on.
func TestStarvedIngestLosesNothing(t *testing.T) {
	needEngine(t)
	one, two, three, four := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	front := up(t, one, "--target", "ingest", "--config", write(t, "ingest: {clock: event, user_salt: salt}\nkafka: {retention: -1s}\n"))
	kafka := "kafka: {retention: -1s, brokers: ['" + front.Kafka + "']}\n"
	back := up(t, two, "--target", "pairer", "--config", write(t, kafka+"ingest: {user_salt: salt}\n"))
	up(t, three, "--target", "joiner,sink", "--config",
		write(t, kafka+"ingest: {user_salt: salt}\nclickhouse: {dsn: '"+writerDSN(t, two, back.ClickHouse)+"'}\n"))
	beside := up(t, four, "--target", "ingest", "--config", write(t, kafka+"ingest: {clock: event, instance: ingest-1, user_salt: salt}\n"))
	waitFor(t, time.Minute, "the second ingest to have its partitions", func() bool {
		return metric(t, beside.Admin, "ctrloop_ingest_partitions") > 0
	})
	var stopped struct{ Pid int }
	raw, err := os.ReadFile(filepath.Join(four, "run.json"))
	if err == nil {
		err = json.Unmarshal(raw, &stopped)
	}
	if err == nil {
		err = syscall.Kill(stopped.Pid, syscall.SIGSTOP)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(stopped.Pid, syscall.SIGCONT) }() // a stopped process cannot be stopped in order
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	for from := 0; from < 200; from += 10 {
		var events strings.Builder
		for i := from; i < from+10; i++ {
			id := uuid7(base+int64(i)*1000, i)
			fmt.Fprintf(&events, `{"type":"impression","id":%q,"product":"p","creative":"c","user":"u%d","propensity":1}`+"\n", id, i)
			if i%10 == 0 {
				fmt.Fprintf(&events, `{"type":"click","id":"k%d","impression_id":%q,"time_ms":%d}`+"\n", i, id, base+int64(i)*1000+900)
			}
		}
		post(t, front.Edge, events.String())
	}
	post(t, front.Edge, fmt.Sprintf(`{"type":"watermark","time_ms":%d}`, base+(3*time.Hour).Milliseconds()))
	waitFor(t, time.Minute, "the first ingest to be three hours ahead", func() bool {
		return metric(t, front.Admin, "ctrloop_ingest_low_watermark_seconds") >= float64(base/1000+3*3600)
	})
	if err := syscall.Kill(stopped.Pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	got := ""
	waitFor(t, 2*time.Minute, "every label", func() bool {
		got = sql(t, two, "SELECT concat(toString(count()), '/', toString(sum(clicked))) FROM labels_latest")
		return got == "200/20"
	})
	if late := sql(t, two, "SELECT toString(count()) FROM late"); got != "200/20" || late != "0" {
		t.Errorf("labels/clicks are %s, want 200/20; %s events were late", got, late)
	}
}

// TestAnImpressionAloneGetsItsLabel (S15): one impression and then silence, with the clock on the wall. Its window closes all the same,
// with no other event to carry the time. It is dated so that most of the window, which is a minute at least, has passed.
func TestAnImpressionAloneGetsItsLabel(t *testing.T) {
	needEngine(t)
	dir := t.TempDir()
	i := up(t, dir, "--target", "ingest,joiner,sink", "--config",
		write(t, "ingest: {clock: wall, allowed_skew: 1s}\njoiner: {window: 1m, lateness: 1s}\n"))
	shown := time.Now().Add(-40 * time.Second).UnixMilli()
	post(t, i.Edge, fmt.Sprintf(`{"type":"impression","id":%q,"product":"p","creative":"c"}`, uuid7(shown, 1)))
	got := ""
	waitFor(t, 2*time.Minute, "the label of an impression that nothing follows", func() bool {
		got = sql(t, dir, "SELECT concat(toString(count()), ' ', toString(any(kind)), ' ', "+
			"toString(max(toUnixTimestamp64Milli(watermark)))) FROM labels")
		return !strings.HasPrefix(got, "0 ")
	})
	label, watermark, _ := strings.Cut(strings.TrimPrefix(got, "1 "), " ")
	if ms, err := strconv.ParseInt(watermark, 10, 64); label != "final_negative" || err != nil || ms < shown+time.Minute.Milliseconds() {
		t.Errorf("its label is %q, want a final negative at a watermark of %d or later: %v", got, shown+time.Minute.Milliseconds(), err)
	}
}

// metric is the value of a metric without labels, 0 where it is not there.
func metric(t *testing.T, admin, name string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

// waitFor asks again and again whether something has happened.
func waitFor(t *testing.T, most time.Duration, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(most); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if happened() {
			return
		}
	}
	t.Errorf("waited %v for %s", most, what)
}

// writerDSN is the address of an instance's warehouse for its own user, as an operator would write it.
func writerDSN(t *testing.T, dir, readOnly string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "clickhouse", "credentials.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		App string `json:"app_password"`
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(readOnly)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("ctrloop", c.App)
	return u.String()
}

func uuid7(ms int64, n int) string {
	h := fmt.Sprintf("%012x7%03x8%015x", ms, n%4096, n)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:32]
}

func write(t *testing.T, yaml string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "ctrloop.yaml")
	if err := os.WriteFile(p, []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func post(t *testing.T, edge, body string) {
	t.Helper()
	resp, err := http.Post("http://"+edge+"/v1/events", "application/x-ndjson", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("edge: %s: %s", resp.Status, raw)
	}
}
