package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ctrloop/app"
	"ctrloop/internal/admin"
	"ctrloop/internal/telemetry"
)

// StatusCmd is `ctrloop status`.
type StatusCmd struct {
	Dir   string `help:"Folder of the instance." default:"ctrloop-data" env:"CTRLOOP_DIR" type:"path"`
	JSON  bool   `name:"json" help:"Print JSON."`
	Ready bool   `help:"Only say whether it is ready: exit code 0, or 1 with what it waits for. For health checks of containers."`
}

// statusTimeout bounds each question to the instance.
const statusTimeout = 5 * time.Second

// maxStatusBytes bounds an answer of the instance.
const maxStatusBytes = 4 << 20

// instanceStatus is what `status --json` prints.
type instanceStatus struct {
	Dir   string                `json:"dir"`
	Ready bool                  `json:"ready"`
	Gates []telemetry.GateState `json:"gates"`
	// Addresses by name, without passwords.
	Addresses map[string]string `json:"addresses"`
	// Overview is the answer of /api/overview, where the instance has an API.
	Overview map[string]any `json:"overview,omitempty"`
}

// Run asks the instance and prints its answers.
func (c *StatusCmd) Run(ctx context.Context, out *output) error {
	found, err := readInstance(c.Dir)
	if err != nil {
		return withHint(err, "start one with `ctrloop up --dir "+c.Dir+"`, or name its folder with --dir")
	}
	if found.Admin == "" {
		return withHint(fmt.Errorf("the instance on %s has no admin listener to ask", c.Dir), "set admin.address in its configuration")
	}
	status := instanceStatus{Dir: c.Dir, Addresses: shown(found)}
	client := clientOf(found, statusTimeout)
	if err := getJSON(ctx, client, found.Admin, admin.ReadyPath, &status); err != nil {
		return withHint(fmt.Errorf("the instance on %s does not answer (it may have been killed): %w", c.Dir, err),
			"start it again with `ctrloop up --dir "+c.Dir+"`")
	}
	if c.Ready {
		return status.readiness()
	}
	if found.API != "" {
		if err := getJSON(ctx, client, found.API, "/api/overview", &status.Overview); err != nil {
			return fmt.Errorf("ask for the overview: %w", err)
		}
	}
	if c.JSON {
		return out.printJSON(status)
	}
	return status.print(out.stdout)
}

// readiness is an error that names every part that the instance waits for.
func (s *instanceStatus) readiness() error {
	if s.Ready {
		return nil
	}
	waits := []string{"the instance on " + s.Dir + " is not ready"}
	for _, gate := range s.Gates {
		if !gate.Ready {
			waits = append(waits, gate.Name+": "+gate.Reason)
		}
	}
	return errors.New(strings.Join(waits, "; "))
}

// shown lists the addresses that are set; the warehouse's DSN holds a password and stays out.
func shown(i app.Addresses) map[string]string {
	all := map[string]string{"api": i.API, "edge": i.Edge, "admin": i.Admin, "kafka": i.Kafka}
	maps.DeleteFunc(all, func(_, address string) bool { return address == "" })
	return all
}

// getJSON asks an instance for a page. A page that says "not ready" is an answer too.
func getJSON(ctx context.Context, client *http.Client, address, path string, into any) error {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(address, "/")+path, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxStatusBytes))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusServiceUnavailable {
		return fmt.Errorf("%s: %s: %.200s", path, res.Status, raw)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// print shows one screen.
func (s instanceStatus) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	state := "ready"
	if !s.Ready {
		state = "not ready"
	}
	fmt.Fprintf(table, "instance\t%s\t%s\n", s.Dir, state)
	for _, gate := range s.Gates {
		if !gate.Ready {
			fmt.Fprintf(table, "waits for\t%s\t%s\n", gate.Name, gate.Reason)
		}
	}
	for _, l := range listed {
		for _, item := range l.of(s.Overview) {
			fmt.Fprintln(table, l.line(item))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Addresses)) {
		fmt.Fprintf(table, "%s\t%s\t\n", name, s.Addresses[name])
	}
	flat := make(map[string]string)
	rest := maps.Clone(s.Overview)
	for _, l := range listed {
		delete(rest, l.name)
	}
	flatten("", rest, flat)
	for _, name := range slices.Sorted(maps.Keys(flat)) {
		fmt.Fprintf(table, "%s\t%s\t\n", name, flat[name])
	}
	return table.Flush()
}

// list is a list of the overview that is shown line by line, in the words of its items.
type list struct {
	name string
	line func(item map[string]any) string
}

// listed come before everything else: what is wrong, what is old, and how each stage is doing.
var listed = []list{
	{"alerts", func(a map[string]any) string {
		return fmt.Sprintf("alert\t%s\t%s", a["severity"], strings.Join(slices.DeleteFunc(
			[]string{text(a["title"]), sinceText(a["since"]), text(a["runbook"])}, func(s string) bool { return s == "" }), ", "))
	}},
	{"stale", func(p map[string]any) string {
		age, _ := p["age_seconds"].(float64)
		return fmt.Sprintf("stale\t%s\t%.0f s old: %s", text(p["part"]), age, cmp.Or(text(p["why"]), "nobody knows why"))
	}},
	{"stages", func(st map[string]any) string {
		return fmt.Sprintf("stage %s\t%s\t%s", text(st["name"]), text(st["state"]), text(st["detail"]))
	}},
}

// of are the items of the list in an overview.
func (l list) of(overview map[string]any) (items []map[string]any) {
	all, _ := overview[l.name].([]any)
	for _, v := range all {
		if item, ok := v.(map[string]any); ok {
			items = append(items, item)
		}
	}
	return items
}

// text is a value that should be one, "" for anything else.
func text(v any) string {
	s, _ := v.(string)
	return s
}

// sinceText says since when, "" where nobody knows.
func sinceText(v any) string {
	at, err := time.Parse(time.RFC3339Nano, text(v))
	if err != nil || at.IsZero() {
		return ""
	}
	return "since " + at.UTC().Format(time.DateTime)
}

// flatten names each value inside nested objects by its path; lists are shown by their length.
func flatten(prefix string, v any, into map[string]string) {
	switch v := v.(type) {
	case map[string]any:
		for key, inner := range v {
			flatten(strings.TrimPrefix(prefix+"."+key, "."), inner, into)
		}
	case []any:
		into[prefix] = fmt.Sprintf("(%d)", len(v))
	case nil:
	default:
		into[prefix] = fmt.Sprint(v)
	}
}
