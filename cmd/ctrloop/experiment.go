package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ctrloop/internal/httpapi"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment"
	"ctrloop/serving/experiment/client"
	"ctrloop/serving/experiment/ramp"
)

// ExperimentCmd is `ctrloop experiment`, the twin of /v1/experiments.
type ExperimentCmd struct {
	Create   ExperimentCreateCmd   `cmd:"" help:"Make an experiment; it starts at once, unless it is a draft."`
	List     ExperimentListCmd     `cmd:"" help:"All experiments, newest first."`
	Show     ExperimentShowCmd     `cmd:"" help:"One experiment: figures, guardrails, health, what was done to it."`
	Start    ExperimentStartCmd    `cmd:"" help:"Start a draft."`
	Pause    ExperimentPauseCmd    `cmd:"" help:"Hold the ramp; traffic stays as it is, guards still roll back."`
	Resume   ExperimentResumeCmd   `cmd:"" help:"Let a paused ramp go on."`
	Promote  ExperimentPromoteCmd  `cmd:"" help:"End it: the treatment becomes champion."`
	Rollback ExperimentRollbackCmd `cmd:"" help:"End it: the control answers again."`
	Stop     ExperimentStopCmd     `cmd:"" help:"End it with an outcome."`
	Override ExperimentOverrideCmd `cmd:"" help:"Go to a step of the ramp by hand."`
	Force    ExperimentForceCmd    `cmd:"" help:"Give a unit an arm, for testers; no part of the analysis."`
	Holdout  ExperimentHoldoutCmd  `cmd:"" help:"Show the holdout groups, or set one: users who take part in no experiment."`
	Replay   ExperimentReplayCmd   `cmd:"" help:"Send an experiment's webhooks again."`
	Export   ExperimentExportCmd   `cmd:"" help:"Everything about an experiment as JSON, its table as CSV."`
}

// instanceFlags find the instance to talk to.
type instanceFlags struct {
	Dir       string `help:"Folder of the instance." default:"ctrloop-data" env:"CTRLOOP_DIR" type:"path"`
	API       string `name:"api" help:"Address of its API, instead of the one in its folder." placeholder:"URL" env:"CTRLOOP_API"`
	TokenFile string `help:"File with the token for --api; the variable CTRLOOP_TOKEN serves too." type:"existingfile" placeholder:"FILE"`
	JSON      bool   `name:"json" help:"Print JSON."`
}

// noted are commands that a person must give a reason for.
type noted struct {
	instanceFlags
	ID     string `arg:"" help:"The experiment."`
	Note   string `help:"Why; it goes into the log." required:"" placeholder:"TEXT"`
	Expect *int64 `help:"Version of the experiment that this was decided on (show prints it): refused if it has moved on." placeholder:"N"`
}

// apiError is a refusal of the API. Its exit code is that of wrong usage where the request could never be right, whatever the
// instance has.
type apiError struct{ refused *client.Error }

func (e apiError) Error() string { return e.refused.Error() }

// Hint is the API's, with commands for the calls that it names.
func (e apiError) Hint() string { return commandsFor.Replace(e.refused.Hint) }

// commandsFor are the commands of the calls that the API's hints name.
var commandsFor = strings.NewReplacer(
	"GET /v1/experiments/webhooks lists them", "`ctrloop config show` lists them under webhooks.endpoints",
	"GET /v1/experiments lists them", "`ctrloop experiment list` lists them",
	"GET /v1/models lists them", "`ctrloop model ls` lists them",
	"GET /v1/creatives lists them", "`ctrloop creative ls` lists them",
	"GET /v1/jobs lists them", "`ctrloop job ls` lists them",
	"GET /v1/jobs lists them", "`ctrloop job ls` lists them",
)

// ExitCode tells wrong requests from failures.
func (e apiError) ExitCode() int {
	switch e.refused.Status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return exitUsage
	}
	return exitFailed
}

// client finds the instance and the token for it.
func (f instanceFlags) client() (*client.Client, error) {
	token, err := f.token()
	if err != nil {
		return nil, err
	}
	found, err := readInstance(f.Dir)
	if f.API != "" {
		// The token of a folder is for the instance of that folder alone.
		if token == "" && err == nil && found.API != "" && httpapi.HostPort(f.API) == httpapi.HostPort(found.API) {
			return client.New(f.API, found.Token, userName()), nil
		}
		return client.New(f.API, token, ""), nil
	}
	if err != nil {
		return nil, withHint(err, "start one with `ctrloop up --dir "+f.Dir+"`, or name its folder with --dir or its API with --api")
	}
	if found.API == "" {
		return nil, withHint(fmt.Errorf("the instance on %s serves no API", f.Dir), "name one that runs the target serving, with --api")
	}
	if token != "" {
		return client.New(found.API, token, ""), nil
	}
	return client.New(found.API, found.Token, userName()), nil
}

// token is the one that was given, "" for none.
func (f instanceFlags) token() (string, error) {
	if f.TokenFile == "" {
		return os.Getenv("CTRLOOP_TOKEN"), nil
	}
	raw, err := os.ReadFile(f.TokenFile)
	if err != nil {
		return "", usageError{err}
	}
	return strings.TrimSpace(string(raw)), nil
}

// call asks the experiments' API of the instance; body nil: GET.
func (f instanceFlags) call(ctx context.Context, method, path string, body any) ([]byte, error) {
	return f.at(ctx, method, "/v1/experiments"+path, body)
}

// at asks the instance's API for any path.
func (f instanceFlags) at(ctx context.Context, method, path string, body any) ([]byte, error) {
	c, err := f.client()
	if err != nil {
		return nil, err
	}
	raw, err := c.At(ctx, method, path, body)
	if refused, ok := errors.AsType[*client.Error](err); ok {
		return nil, apiError{refused}
	}
	if err != nil {
		return nil, withHint(fmt.Errorf("ask the instance: %w", err), "is it running? `ctrloop status` tells")
	}
	return raw, nil
}

// command posts and prints the experiment as it is then.
func (f instanceFlags) command(ctx context.Context, out *output, id, what string, r experiment.Request) error {
	raw, err := f.call(ctx, http.MethodPost, "/"+url.PathEscape(id)+"/"+what, r)
	if err != nil {
		return err
	}
	if f.JSON {
		return printRaw(out, raw)
	}
	var s experiment.Status
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	fmt.Fprintln(out.stdout, line(s))
	return nil
}

// printRaw prints the API's answer, indented.
func printRaw(out *output, raw []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(raw), "", "  "); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	_, err := fmt.Fprintln(out.stdout, b.String())
	return err
}

// line says where an experiment stands.
func line(s experiment.Status) string {
	where := fmt.Sprintf("step %d of %d at %g %%", s.Step.Number(), len(s.Steps), 100*s.Step.Share)
	if d := s.Decision; d != nil {
		where = fmt.Sprintf("%s by %s", d.Outcome, d.Rule)
	}
	return fmt.Sprintf("%s: %s, %s", s.ID, s.Phase, where)
}

// ExperimentCreateCmd is `ctrloop experiment create`.
type ExperimentCreateCmd struct {
	instanceFlags
	Treatment string    `arg:"" help:"Model version to test."`
	ID        string    `name:"id" help:"Name of the experiment. Default: exp-<treatment>."`
	Logical   string    `help:"Logical model." default:"prompt"`
	Control   string    `help:"Model version to test against. Default: the champion."`
	Unit      string    `help:"What is assigned: user or product." enum:"user,product" default:"user"`
	Steps     []float64 `help:"Shares of the treatment, ascending." default:"0.01,0.05,0.2,0.5,1"`
	Alpha     float64   `help:"Error of the lift's interval, two-sided, over all looks." default:"0.05"`
	NStar     float64   `name:"n-star" help:"Units at which the interval is tightest." default:"5000"`
	Slot      string    `help:"Part of a layer that the experiment has to itself, e.g. prompt:0:0.5. Default: the model's whole layer." placeholder:"LAYER:START:END"`
	Target    []string  `help:"A condition of the units, e.g. 'country in de,fr' or 'age gte 18'; all must hold." placeholder:"CONDITION" sep:"none"`
	Draft     bool      `help:"Only write it down; ctrloop experiment start begins it."`
	Note      string    `help:"Why; it goes into the log."`
}

// Run creates it.
func (c *ExperimentCreateCmd) Run(ctx context.Context, out *output) error {
	x := map[string]any{
		"treatment": c.Treatment,
		"logical":   c.Logical,
		"unit":      c.Unit,
		"steps":     c.Steps,
		"alpha":     c.Alpha,
		"n_star":    c.NStar,
		"draft":     c.Draft,
		"note":      c.Note,
	}
	if c.ID != "" {
		x["id"] = c.ID
	}
	if c.Control != "" {
		x["control"] = c.Control
	}
	if c.Slot != "" {
		s, err := parseSlot(c.Slot)
		if err != nil {
			return err
		}
		x["slot"] = s
	}
	var conditions []control.Condition
	for _, text := range c.Target {
		k, err := parseCondition(text)
		if err != nil {
			return err
		}
		conditions = append(conditions, k)
	}
	if conditions != nil {
		x["targeting"] = conditions
	}
	raw, err := c.call(ctx, http.MethodPost, "", x)
	if err != nil {
		return err
	}
	if c.JSON {
		return printRaw(out, raw)
	}
	var made control.Experiment
	if err := json.Unmarshal(raw, &made); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	next := "it runs"
	if made.Draft {
		next = "a draft: `ctrloop experiment start " + made.ID + "` starts it"
	}
	fmt.Fprintf(out.stdout, "%s: %s against %s by %s; %s\n", made.ID, made.Treatment, made.Control, made.Unit, next)
	return nil
}

func parseSlot(text string) (control.Slot, error) {
	var s control.Slot
	parts := strings.Split(text, ":")
	if len(parts) == 3 {
		s.Layer = parts[0]
		if _, err := fmt.Sscanf(parts[1]+" "+parts[2], "%g %g", &s.Start, &s.End); err == nil {
			return s, nil
		}
	}
	return s, usageError{withHint(fmt.Errorf("slot %q", text), "want LAYER:START:END, e.g. prompt:0:0.5")}
}

func parseCondition(text string) (control.Condition, error) {
	f := strings.Fields(text)
	if len(f) < 2 {
		return control.Condition{}, usageError{
			withHint(
				fmt.Errorf("condition %q", text),
				"want ATTRIBUTE OPERATOR [VALUES], e.g. 'country in de,fr'; operators: in, not_in, prefix, gte, lt, present, absent",
			),
		}
	}
	c := control.Condition{Attribute: f[0], Op: control.Op(f[1])}
	if rest := strings.TrimSpace(strings.Join(f[2:], " ")); rest != "" {
		for v := range strings.SplitSeq(rest, ",") {
			c.Values = append(c.Values, strings.TrimSpace(v))
		}
	}
	return c, nil
}

// ExperimentListCmd is `ctrloop experiment list`.
type ExperimentListCmd struct {
	instanceFlags
	Phase string `help:"Only those in a phase: draft, running, paused or decided." enum:",draft,running,paused,decided" default:""`
}

// Run lists them.
func (c *ExperimentListCmd) Run(ctx context.Context, out *output) error {
	raw, err := c.call(ctx, http.MethodGet, "", nil)
	if err != nil {
		return err
	}
	var got struct {
		Experiments []experiment.Status `json:"experiments"`
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if c.Phase != "" {
		got.Experiments = slices.DeleteFunc(got.Experiments, func(s experiment.Status) bool { return string(s.Phase) != c.Phase })
	}
	if c.JSON {
		return out.printJSON(got)
	}
	if len(got.Experiments) == 0 {
		fmt.Fprintln(out.stdout, "no experiments; `ctrloop experiment create VERSION` makes one")
		return nil
	}
	t := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "id\tphase\tstep\tshare\ttreatment\tcontrol\toutcome\tlift")
	for _, s := range got.Experiments {
		outcome, lift := "", ""
		if d := s.Decision; d != nil {
			outcome, lift = fmt.Sprintf("%s (%s)", d.Outcome, d.Rule), interval(ramp.Num(d.Lift), ramp.Num(d.LiftLow), ramp.Num(d.LiftHigh))
		}
		fmt.Fprintf(
			t,
			"%s\t%s\t%d/%d\t%g %%\t%s\t%s\t%s\t%s\n",
			s.ID,
			s.Phase,
			s.Step.Number(),
			len(s.Steps),
			100*s.Step.Share,
			s.Treatment,
			s.Control,
			outcome,
			lift,
		)
	}
	return t.Flush()
}

// interval writes a relative figure with its bounds, in per cent.
func interval(at, low, high ramp.Num) string {
	return fmt.Sprintf("%s %% [%s, %s]", known("%+.2f", 100*at), known("%+.2f", 100*low), known("%+.2f", 100*high))
}

// known writes a number, and a question mark for what the data do not say yet.
func known(format string, n ramp.Num) string {
	if f := float64(n); f-f == 0 {
		return fmt.Sprintf(format, f)
	}
	return "?"
}

// ExperimentShowCmd is `ctrloop experiment show`.
type ExperimentShowCmd struct {
	instanceFlags
	ID string `arg:"" help:"The experiment."`
}

// Run shows its page.
func (c *ExperimentShowCmd) Run(ctx context.Context, out *output) error {
	raw, err := c.call(ctx, http.MethodGet, "/"+url.PathEscape(c.ID)+"/results", nil)
	if err != nil {
		return err
	}
	if c.JSON {
		return printRaw(out, raw)
	}
	var r experiment.Results
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return printExperiment(out.stdout, r)
}

func printExperiment(w io.Writer, r experiment.Results) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	s := r.Experiment
	fmt.Fprintf(t, "%s\n", line(s))
	fmt.Fprintf(t, "test\t%s against %s by %s\n", s.Treatment, s.Control, s.Unit)
	fmt.Fprintf(t, "version\t%d\n", s.Version)
	fmt.Fprintf(t, "decision\t%s by %s: %s\n", r.Decision.Decision, r.Decision.Rule, r.Decision.Why)
	fmt.Fprintln(t, "\nshare\tarm\tunits\timpressions\tclicks\tCTR\tlift\tp")
	for _, f := range r.Steps {
		for i, a := range []ramp.Arm{f.Control, f.Treatment} {
			name, lift, p := "control", "", ""
			if i == 1 {
				name, lift, p = "treatment", interval(f.Relative, f.RelativeLow, f.RelativeHigh), known("%.3g", f.P)
			}
			fmt.Fprintf(
				t,
				"%g %%\t%s\t%d\t%d\t%d\t%s %%\t%s\t%s\n",
				100*f.Step.Share,
				name,
				a.Units,
				a.Impressions,
				a.Clicks,
				known("%.3f", 100*a.CTR),
				lift,
				p,
			)
		}
	}
	if x := r.WholeRamp; x != nil {
		fmt.Fprintf(
			t,
			"whole ramp (for reports, decides nothing)\t\t\t\t\t\t%s\t%.3g\n",
			interval(x.Relative, x.RelativeLow, x.RelativeHigh),
			float64(x.P),
		)
	}
	fmt.Fprintln(t, "\nguardrail\tstate\taction\twhy")
	for _, g := range r.Guardrails {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", g.Name, g.State, g.Action, g.Why)
	}
	h := r.Health
	fmt.Fprintf(t, "\nsample ratio\tp %s\t%s\n", known("%.3g", h.SampleRatioP), sampleRatio(h))
	if h.Multiple != nil {
		fmt.Fprintf(t, "in both arms\t%d of %d units\n", h.Multiple.Both, h.Multiple.Units)
	}
	fmt.Fprintf(
		t,
		"power\t+-%s %% now; finds %s %%; +-1 %% in %s days\n",
		known("%.2f", 100*h.HalfWidth),
		known("%.2f", 100*h.MDE),
		known("%.1f", h.DaysToOnePercent),
	)
	if !math.IsNaN(float64(h.UnitsForMargin)) {
		fmt.Fprintf(
			t,
			"the margin\tfound with probability %.2f now, with 0.8 at %.0f units\n",
			float64(h.PowerForMargin),
			float64(h.UnitsForMargin),
		)
	}
	fmt.Fprintln(t, "\nversion\ttime\twho\twhat\tnote")
	for _, c := range s.Trail {
		fmt.Fprintf(
			t,
			"%d\t%s\t%s\t%s\t%s\n",
			c.Version,
			c.Time.UTC().Format(time.DateTime),
			c.Actor,
			strings.TrimPrefix(string(c.Type), "experiment."),
			c.Note,
		)
	}
	return t.Flush()
}

// sampleRatio says whether the units fall into the arms as planned, as far as that was tested.
func sampleRatio(h experiment.HealthRow) string {
	switch {
	case math.IsNaN(float64(h.SampleRatioP)):
		return "not known: " + cmp.Or(h.SampleRatioWhy, "nothing was tested yet")
	case h.SampleRatioOK:
		return "as planned"
	}
	return "NOT as planned"
}

// ExperimentStartCmd is `ctrloop experiment start`.
type ExperimentStartCmd struct {
	instanceFlags
	ID   string `arg:"" help:"The experiment."`
	Note string `help:"Why; it goes into the log."`
}

// Run starts it.
func (c *ExperimentStartCmd) Run(ctx context.Context, out *output) error {
	return c.command(ctx, out, c.ID, "start", experiment.Request{Note: c.Note})
}

// request is what all noted commands send.
func (n noted) request() experiment.Request {
	return experiment.Request{Note: n.Note, Expect: n.Expect}
}

// ExperimentPauseCmd is `ctrloop experiment pause`.
type ExperimentPauseCmd struct{ noted }

// Run pauses it.
func (c *ExperimentPauseCmd) Run(ctx context.Context, out *output) error {
	return c.command(ctx, out, c.ID, "pause", c.request())
}

// ExperimentResumeCmd is `ctrloop experiment resume`.
type ExperimentResumeCmd struct{ noted }

// Run resumes it.
func (c *ExperimentResumeCmd) Run(ctx context.Context, out *output) error {
	return c.command(ctx, out, c.ID, "resume", c.request())
}

// ExperimentPromoteCmd is `ctrloop experiment promote`.
type ExperimentPromoteCmd struct{ noted }

// Run promotes the treatment.
func (c *ExperimentPromoteCmd) Run(ctx context.Context, out *output) error {
	return c.command(ctx, out, c.ID, "promote", c.request())
}

// ExperimentRollbackCmd is `ctrloop experiment rollback`.
type ExperimentRollbackCmd struct{ noted }

// Run gives the traffic back to the control.
func (c *ExperimentRollbackCmd) Run(ctx context.Context, out *output) error {
	return c.command(ctx, out, c.ID, "rollback", c.request())
}

// ExperimentStopCmd is `ctrloop experiment stop`.
type ExperimentStopCmd struct {
	noted
	Outcome string `help:"promote, rollback or inconclusive." required:"" enum:"promote,rollback,inconclusive"`
}

// Run stops it.
func (c *ExperimentStopCmd) Run(ctx context.Context, out *output) error {
	r := c.request()
	r.Outcome = control.Outcome(c.Outcome)
	return c.command(ctx, out, c.ID, "stop", r)
}

// ExperimentOverrideCmd is `ctrloop experiment override`.
type ExperimentOverrideCmd struct {
	noted
	Step int `help:"Step to go to, from 1." required:""`
}

// Run goes to the step.
func (c *ExperimentOverrideCmd) Run(ctx context.Context, out *output) error {
	r := c.request()
	r.Step = &c.Step
	return c.command(ctx, out, c.ID, "override", r)
}

// ExperimentForceCmd is `ctrloop experiment force`.
type ExperimentForceCmd struct {
	instanceFlags
	ID      string `arg:"" help:"The experiment."`
	Unit    string `arg:"" help:"User (as the decision gets it) or product."`
	Variant string `arg:"" help:"control, treatment, or none to take it back." enum:"control,treatment,none"`
	Note    string `help:"Why; it goes into the log."`
}

// Run forces the unit.
func (c *ExperimentForceCmd) Run(ctx context.Context, out *output) error {
	v := c.Variant
	if v == "none" {
		v = ""
	}
	return c.command(ctx, out, c.ID, "force", experiment.Request{Note: c.Note, Unit: c.Unit, Variant: v})
}

// ExperimentHoldoutCmd is `ctrloop experiment holdout`.
type ExperimentHoldoutCmd struct {
	instanceFlags
	Logical string   `arg:"" optional:"" help:"Logical model; without one all groups are shown."`
	Share   *float64 `help:"Share of the users, 0 to below 1; 0 ends the group."`
	Version string   `help:"Model version that they stay on. Default: the champion."`
	Note    string   `help:"Why; it goes into the log."`
}

// Run shows or sets them.
func (c *ExperimentHoldoutCmd) Run(ctx context.Context, out *output) error {
	var raw []byte
	var err error
	switch {
	case c.Logical == "":
		raw, err = c.call(ctx, http.MethodGet, "/holdouts", nil)
	case c.Share == nil:
		return usageError{
			withHint(fmt.Errorf("no share for the holdout group of %s", c.Logical), "give --share, e.g. --share 0.05; 0 ends the group"),
		}
	default:
		raw, err = c.call(
			ctx,
			http.MethodPut,
			"/holdouts/"+url.PathEscape(c.Logical),
			map[string]any{"share": *c.Share, "version": c.Version, "note": c.Note},
		)
	}
	if err != nil {
		return err
	}
	if c.JSON {
		return printRaw(out, raw)
	}
	var got struct{ Holdouts []control.Holdout }
	if err := json.Unmarshal(raw, &got); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if len(got.Holdouts) == 0 {
		fmt.Fprintln(out.stdout, "no holdout groups")
	}
	for _, h := range got.Holdouts {
		at := "the champion"
		if h.Version != "" {
			at = h.Version
		}
		fmt.Fprintf(out.stdout, "%s: %g %% of the users stay at %s\n", h.Logical, 100*h.Share, at)
	}
	return nil
}

// ExperimentReplayCmd is `ctrloop experiment replay`.
type ExperimentReplayCmd struct {
	instanceFlags
	ID       string `arg:"" help:"The experiment."`
	Endpoint string `help:"Name of the receiver; all of them by default."`
	From     int64  `help:"Version of the experiment to begin with." default:"1"`
}

// Run replays its webhooks.
func (c *ExperimentReplayCmd) Run(ctx context.Context, out *output) error {
	raw, err := c.call(
		ctx,
		http.MethodPost,
		"/"+url.PathEscape(c.ID)+"/webhooks/replay",
		map[string]any{"endpoint": c.Endpoint, "from": c.From},
	)
	if err != nil {
		return err
	}
	if c.JSON {
		return printRaw(out, raw)
	}
	var got struct{ Deliveries int }
	if err := json.Unmarshal(raw, &got); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	fmt.Fprintf(out.stdout, "%d deliveries go out again\n", got.Deliveries)
	return nil
}

// ExperimentExportCmd is `ctrloop experiment export`.
type ExperimentExportCmd struct {
	instanceFlags
	ID     string `arg:"" help:"The experiment."`
	Format string `help:"json or csv." enum:"json,csv" default:"json"`
	Out    string `help:"File to write; standard output by default." short:"o" placeholder:"FILE"`
}

// Run exports it.
func (c *ExperimentExportCmd) Run(ctx context.Context, out *output) error {
	format := c.Format
	if c.JSON {
		format = "json"
	}
	raw, err := c.call(ctx, http.MethodGet, "/"+url.PathEscape(c.ID)+"/export?format="+format, nil)
	if err != nil {
		return err
	}
	if c.Out == "" {
		_, err = out.stdout.Write(raw)
		return err
	}
	if err := os.WriteFile(c.Out, raw, 0o644); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	fmt.Fprintf(out.stderr, "%s: %d bytes\n", c.Out, len(raw))
	return nil
}
