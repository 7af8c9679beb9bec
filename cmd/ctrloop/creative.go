package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"text/tabwriter"

	"ctrloop/schemas"
)

// CreativeCmd is `ctrloop creative`.
type CreativeCmd struct {
	Ls      CreativeLsCmd      `cmd:"" help:"List creatives."`
	Block   CreativeBlockCmd   `cmd:"" help:"Stop a creative from serving, at once and on every replica."`
	Unblock CreativeUnblockCmd `cmd:"" help:"Let a creative serve again that somebody blocked."`
}

// CreativeLsCmd is `ctrloop creative ls`.
type CreativeLsCmd struct {
	instanceFlags
	Product string `help:"Only those of a product." placeholder:"ID"`
	Model   string `help:"Only those of a model version." placeholder:"VERSION"`
	Blocked bool   `help:"Only those that may not serve."`
	Limit   int    `help:"List at most so many; 1 to 10000." default:"1000"`
}

// Run lists them.
func (c *CreativeLsCmd) Run(ctx context.Context, out *output) error {
	q := url.Values{"limit": {strconv.Itoa(c.Limit)}}
	if c.Blocked {
		q.Set("limit", "10000") // they are picked out here
	}
	if c.Product != "" {
		q.Set("product", c.Product)
	}
	if c.Model != "" {
		q.Set("version", c.Model)
	}
	raw, err := c.at(ctx, http.MethodGet, "/v1/creatives?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	var got struct {
		Creatives []schemas.Creative `json:"creatives"`
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if c.Blocked {
		got.Creatives = slices.DeleteFunc(got.Creatives, func(c schemas.Creative) bool { return c.Blocked == "" })
		got.Creatives = got.Creatives[:min(len(got.Creatives), c.Limit)]
	}
	if c.JSON {
		return out.printJSON(got)
	}
	t := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "id\tproduct\tversion\tdescription\tblocked")
	for _, k := range got.Creatives {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", k.ID, k.Product, k.ModelVersion, k.Description, k.Blocked)
	}
	return t.Flush()
}

// switched are commands on one thing that a person must give a reason for.
type switched struct {
	instanceFlags
	Note   string `help:"Why; it goes into the log." required:"" placeholder:"TEXT"`
	Expect *int64 `help:"Version that this was decided on: refused if it has moved on." placeholder:"N"`
}

// send posts the command and returns the answer.
func (s switched) send(ctx context.Context, path string) ([]byte, error) {
	body := map[string]any{"note": s.Note}
	if s.Expect != nil {
		body["expect"] = *s.Expect
	}
	return s.at(ctx, http.MethodPost, path, body)
}

// CreativeBlockCmd is `ctrloop creative block`.
type CreativeBlockCmd struct {
	switched
	ID string `arg:"" help:"The creative."`
}

// Run blocks it.
func (c *CreativeBlockCmd) Run(ctx context.Context, out *output) error {
	return c.set(ctx, out, c.ID, "block")
}

// CreativeUnblockCmd is `ctrloop creative unblock`.
type CreativeUnblockCmd struct {
	switched
	ID string `arg:"" help:"The creative."`
}

// Run unblocks it.
func (c *CreativeUnblockCmd) Run(ctx context.Context, out *output) error {
	return c.set(ctx, out, c.ID, "unblock")
}

// set sends a command on a creative and says what it is then.
func (s switched) set(ctx context.Context, out *output, id, what string) error {
	raw, err := s.send(ctx, "/v1/creatives/"+url.PathEscape(id)+"/"+what)
	if err != nil {
		return err
	}
	if s.JSON {
		return printRaw(out, raw)
	}
	var c schemas.Creative
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	state := "may serve"
	if c.Blocked != "" {
		state = "is blocked " + c.Blocked
	}
	_, err = fmt.Fprintf(out.stdout, "%s of %s %s\n", c.ID, c.Product, state)
	return err
}
