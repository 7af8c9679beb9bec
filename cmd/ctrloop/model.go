package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"ctrloop/schemas/control"
	"ctrloop/serving"
)

// ModelCmd is `ctrloop model`.
type ModelCmd struct {
	Ls       ModelLsCmd       `cmd:"" help:"List the versions, with the champion and the way back."`
	Rollback ModelRollbackCmd `cmd:"" help:"Go back to the champion before; it is still loaded."`
}

// ModelLsCmd is `ctrloop model ls`.
type ModelLsCmd struct{ instanceFlags }

// Run lists them.
func (c *ModelLsCmd) Run(ctx context.Context, out *output) error {
	raw, err := c.at(ctx, http.MethodGet, "/v1/models/versions", nil)
	if err != nil {
		return err
	}
	if c.JSON {
		return printRaw(out, raw)
	}
	var got struct {
		Versions []serving.VersionRow `json:"versions"`
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	t := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "version\tmodel\tstate\treplicas\tsince\t\twhy")
	for _, v := range got.Versions {
		mark := ""
		if v.Previous {
			mark = "the way back"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", v.Version, v.Logical, v.State, v.Replicas, v.Since.UTC().Format(time.DateTime), mark,
			v.Reason)
	}
	return t.Flush()
}

// ModelRollbackCmd is `ctrloop model rollback`.
type ModelRollbackCmd struct {
	switched
	Logical string `arg:"" optional:"" help:"Logical model." default:"prompt"`
}

// Run goes back.
func (c *ModelRollbackCmd) Run(ctx context.Context, out *output) error {
	raw, err := c.send(ctx, "/v1/models/"+url.PathEscape(c.Logical)+"/rollback")
	if err != nil {
		return err
	}
	if c.JSON {
		return printRaw(out, raw)
	}
	var r control.Route
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	_, err = fmt.Fprintf(out.stdout, "%s: %s answers again, in the place of %s\n", c.Logical, r.Champion, r.Previous)
	return err
}
