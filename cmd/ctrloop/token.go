package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"ctrloop/app"
	"ctrloop/internal/access"
	"ctrloop/internal/config"
)

// TokenCmd is `ctrloop token`.
type TokenCmd struct {
	Create TokenCreateCmd `cmd:"" help:"Make a token and print it, once: only its hash is kept."`
	Ls     TokenLsCmd     `cmd:"" help:"List the tokens."`
	Revoke TokenRevokeCmd `cmd:"" help:"End a token; within a second a running instance refuses it."`
}

// tokensFlags find the file of tokens.
type tokensFlags struct {
	Dir    string `help:"Folder of the instance." default:"ctrloop-data" env:"CTRLOOP_DIR" type:"path"`
	Config string `help:"Its configuration file, where that says auth.tokens_file." type:"existingfile" placeholder:"FILE"`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (f tokensFlags) file() (string, error) {
	cfg, err := config.Load(f.Config, app.Default())
	if err != nil {
		return "", err
	}
	return app.TokensFile(cfg, f.Dir), nil
}

// TokenCreateCmd is `ctrloop token create`.
type TokenCreateCmd struct {
	tokensFlags
	Name    string `arg:"" help:"Who or what it is for: the actor on the control log."`
	Scopes  string `help:"Some of events:write, ads:decide, read, experiments:write, models:promote, admin." required:"" placeholder:"LIST"`
	Expires string `help:"After how long it ends, such as 12h or 90d; or never." default:"90d" placeholder:"TIME"`
}

// Run makes it.
func (c *TokenCreateCmd) Run(_ context.Context, out *output) error {
	file, err := c.file()
	if err != nil {
		return err
	}
	scopes, err := access.ParseScopes(c.Scopes)
	if err != nil {
		return usageError{withHint(err, "docs/operations.md says what each allows")}
	}
	now := time.Now()
	var expires time.Time
	if c.Expires != "never" {
		after, err := config.ParseDuration(c.Expires)
		if err != nil {
			return usageError{withHint(fmt.Errorf("expires: %w", err), "such as 12h, 90d, or never")}
		}
		expires = now.Add(after).UTC().Truncate(time.Second)
	}
	secret, t, err := access.Create(file, c.Name, scopes, expires, now)
	if err != nil {
		return usageError{withHint(err, "`ctrloop token ls` lists the tokens; `ctrloop token revoke` ends one")}
	}
	if c.JSON {
		return out.printJSON(struct {
			Token string `json:"token"`
			tokenRow
		}{secret, row(t, now)})
	}
	fmt.Fprintf(out.stderr, "%s, for %s, with %v, ends %s. It is shown once:\n", t.ID, t.Name, t.Scopes, ends(t))
	_, err = fmt.Fprintln(out.stdout, secret)
	return err
}

// tokenRow is a token as lists show it: without its hash.
type tokenRow struct {
	ID      string         `json:"id"`
	Name    string         `json:"name"`
	State   string         `json:"state"` // valid, expired or revoked
	Scopes  []access.Scope `json:"scopes"`
	Created time.Time      `json:"created"`
	Expires time.Time      `json:"expires,omitzero"`
	Revoked time.Time      `json:"revoked,omitzero"`
}

func row(t access.Token, now time.Time) tokenRow {
	state := "valid"
	switch {
	case !t.Revoked.IsZero():
		state = "revoked"
	case !t.Expires.IsZero() && !now.Before(t.Expires):
		state = "expired"
	}
	return tokenRow{t.ID, t.Name, state, t.Scopes, t.Created, t.Expires, t.Revoked}
}

// ends says when a token ends, for people.
func ends(t access.Token) string {
	if t.Expires.IsZero() {
		return "never"
	}
	return t.Expires.UTC().Format(time.DateTime) + " UTC"
}

// TokenLsCmd is `ctrloop token ls`.
type TokenLsCmd struct{ tokensFlags }

// Run lists them.
func (c *TokenLsCmd) Run(_ context.Context, out *output) error {
	file, err := c.file()
	if err != nil {
		return err
	}
	tokens, err := access.Load(file)
	if err != nil {
		return err
	}
	rows := make([]tokenRow, len(tokens))
	for i, t := range tokens {
		rows[i] = row(t, time.Now())
	}
	if c.JSON {
		return out.printJSON(map[string]any{"tokens": rows})
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(out.stdout, "no tokens; `ctrloop token create --scopes read NAME` makes one")
		return err
	}
	w := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "id\tname\tstate\tscopes\tcreated\tends")
	for i, r := range rows {
		scopes := make([]string, len(r.Scopes))
		for k, s := range r.Scopes {
			scopes[k] = string(s)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s UTC\t%s\n", r.ID, r.Name, r.State, strings.Join(scopes, ","),
			r.Created.UTC().Format(time.DateTime), ends(tokens[i]))
	}
	return w.Flush()
}

// TokenRevokeCmd is `ctrloop token revoke`.
type TokenRevokeCmd struct {
	tokensFlags
	Which string `arg:"" name:"token" help:"Its id, or its name."`
}

// Run ends it.
func (c *TokenRevokeCmd) Run(_ context.Context, out *output) error {
	file, err := c.file()
	if err != nil {
		return err
	}
	t, err := access.Revoke(file, c.Which, time.Now().UTC().Truncate(time.Second))
	if err != nil {
		return withHint(err, "`ctrloop token ls` lists them")
	}
	if c.JSON {
		return out.printJSON(row(t, time.Now()))
	}
	_, err = fmt.Fprintf(out.stdout, "%s, of %s, is revoked\n", t.ID, t.Name)
	return err
}
