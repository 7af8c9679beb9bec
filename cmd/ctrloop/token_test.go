package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ctrloop/internal/access"
)

// The life of a token from the command line: made, listed without its secret, revoked.
func TestTokenCommands(t *testing.T) {
	dir := t.TempDir()
	code, secret, stderr := cli(t, "token", "create", "--dir", dir, "--scopes", "read,experiments:write", "ada")
	secret = strings.TrimSpace(secret)
	if code != exitOK || !strings.HasPrefix(secret, "ctrloop_") || strings.Contains(secret, "\n") || !strings.Contains(stderr, "shown once") {
		t.Fatalf("exit %d, %q: %s", code, secret, stderr)
	}
	store, err := access.Open(filepath.Join(dir, access.TokensFile), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if who, err := store.Identify(secret); err != nil || who.Name != "ada" || !who.May(access.ExperimentsWrite) || who.May(access.Admin) {
		t.Errorf("%+v, %v", who, err)
	}
	code, list, stderr := cli(t, "token", "ls", "--dir", dir, "--json")
	var got struct{ Tokens []tokenRow }
	if err := json.Unmarshal([]byte(list), &got); err != nil || code != exitOK || len(got.Tokens) != 1 || got.Tokens[0].State != "valid" ||
		got.Tokens[0].Expires.Before(time.Now().Add(89*24*time.Hour)) || strings.Contains(list, secret) || strings.Contains(list, "sha256") {
		t.Errorf("exit %d, %v:\n%s%s", code, err, list, stderr)
	}
	if code, out, stderr := cli(t, "token", "revoke", "--dir", dir, "ada"); code != exitOK || !strings.Contains(out, "is revoked") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	if _, list, _ := cli(t, "token", "ls", "--dir", dir); !strings.Contains(list, "revoked") ||
		!strings.Contains(list, "read,experiments:write") {
		t.Errorf("list:\n%s", list)
	}
	for _, c := range []struct{ args, want string }{
		{"create --scopes all ada", "no scope"},
		{"create --scopes public ada", "no scope"},
		{"create --scopes read local", "it is the actor"},
		{"create --scopes read --expires 5 ada", "is not a duration"},
		{"create --scopes read --expires=-1h ada", "not in the future"},
		{"create ada", "--scopes"},
	} {
		args := append([]string{"token"}, strings.Fields(c.args)...)
		if code, _, stderr := cli(t, append(args, "--dir", dir)...); code != exitUsage || !strings.Contains(stderr, c.want) ||
			!strings.Contains(stderr, "do: ") {
			t.Errorf("%s: exit %d: %s", c.args, code, stderr)
		}
	}
	if code, _, stderr := cli(t, "token", "revoke", "ada", "--dir", dir); code != exitFailed || !strings.Contains(stderr, "no such token") ||
		!strings.Contains(stderr, "do: ") {
		t.Errorf("revoke nobody: exit %d: %s", code, stderr)
	}
	elsewhere := filepath.Join(t.TempDir(), "c.yaml")
	file := filepath.Join(t.TempDir(), "kept", "tokens.json")
	if err := os.WriteFile(elsewhere, []byte("auth: {tokens_file: "+file+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"token", "create", "--dir", dir, "--config", elsewhere, "--scopes", "admin", "--expires", "never", "ops"}
	if code, _, stderr := cli(t, args...); code != exitOK {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if ts, err := access.Load(file); err != nil || len(ts) != 1 || !ts[0].Expires.IsZero() {
		t.Errorf("%+v, %v", ts, err)
	}
}
