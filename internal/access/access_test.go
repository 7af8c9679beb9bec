package access

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var someTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestTokensLife(t *testing.T) {
	file := filepath.Join(t.TempDir(), TokensFile)
	now := someTime
	s, err := Open(file, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	secret, made, err := Create(file, "ada", []Scope{Read, ExperimentsWrite}, now.Add(time.Hour), now)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(secret, "ctrloop_"+made.ID+"_") || len(secret) != len("ctrloop_")+10+1+43 {
		t.Errorf("token %q of id %s", secret, made.ID)
	}
	now = now.Add(lookEvery)
	who, err := s.Identify(secret)
	if err != nil || who.Name != "ada" || who.Local || !who.May(Read) || who.May(Admin) || who.May(EventsWrite) || !who.May(Public) {
		t.Errorf("%+v, %v", who, err)
	}
	// One character more, less or other is another token, with the right id and without.
	for _, wrong := range []string{
		"", secret + "A", secret[:len(secret)-1], secret[:len(secret)-1] + "~", strings.Replace(secret, made.ID, "0000000000", 1),
		made.SHA256, "ctrloop_" + made.ID + "_" + made.SHA256,
	} {
		if _, err := s.Identify(wrong); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	now = someTime.Add(time.Hour)
	if _, err := s.Identify(secret); !errors.Is(err, ErrExpired) {
		t.Errorf("expired: %v", err)
	}
	second, made, err := Create(file, "ada", []Scope{Admin}, time.Time{}, now) // the first of this name has expired
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(lookEvery)
	if who, err := s.Identify(second); err != nil || !who.May(EventsWrite) {
		t.Errorf("admin: %+v %v", who, err)
	}
	if _, err := Revoke(file, made.ID, now); err != nil {
		t.Fatal(err)
	}
	now = now.Add(lookEvery)
	if _, err := s.Identify(second); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked: %v", err)
	}
	if _, err := Revoke(file, made.ID, now); !errors.Is(err, ErrNoToken) {
		t.Errorf("revoked twice: %v", err)
	}
}

// The file holds hashes only, and is its user's alone.
func TestTokensAtRest(t *testing.T) {
	file := filepath.Join(t.TempDir(), TokensFile)
	secret, made, err := Create(file, "ada", []Scope{Read}, time.Time{}, someTime)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), secret[len("ctrloop_"+made.ID+"_"):]) {
		t.Errorf("the token stands in its file:\n%s", raw)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(filepath.Dir(file)); err != nil {
		t.Error(err)
	}
}

func TestCreateRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), TokensFile)
	if _, _, err := Create(file, "taken", []Scope{Read}, time.Time{}, someTime); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		scopes  []Scope
		expires time.Time
	}{
		{"", []Scope{Read}, time.Time{}},
		{"local", []Scope{Read}, time.Time{}},
		{"ctrloop", []Scope{Read}, time.Time{}},
		{"local/ada", []Scope{Read}, time.Time{}},
		{"a b", []Scope{Read}, time.Time{}},
		{strings.Repeat("a", 65), []Scope{Read}, time.Time{}},
		{"taken", []Scope{Read}, time.Time{}},
		{"ada", nil, time.Time{}},
		{"ada", []Scope{Read}, someTime},
	} {
		if _, _, err := Create(file, c.name, c.scopes, c.expires, someTime); err == nil {
			t.Errorf("%+v was made", c)
		}
	}
	for _, list := range []string{"", "read,", "everything", "public"} {
		if got, err := ParseScopes(list); err == nil {
			t.Errorf("scopes %q: %v", list, got)
		}
	}
	if got, err := ParseScopes("read, admin,read"); err != nil || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
}

// Commands at the same time lose nothing of each other.
func TestCreateAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), TokensFile)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if _, _, err := Create(file, fmt.Sprintf("t%d", i), []Scope{Read}, time.Time{}, someTime); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if ts, err := Load(file); err != nil || len(ts) != 20 {
		t.Errorf("%d tokens, %v", len(ts), err)
	}
}

// A file that cannot be read lets nobody in; the process's own token does not depend on it.
func TestStoreWithABrokenFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), TokensFile)
	secret, _, err := Create(file, "ada", []Scope{Read}, time.Time{}, someTime)
	if err != nil {
		t.Fatal(err)
	}
	now := someTime
	s, err := Open(file, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	own := s.Own()
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range []string{"", "{", `{"format":2}`, `{"format":1,"tokens":[{"id":"a","sha256":""}]}`} {
		if err := os.WriteFile(file, []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		now = now.Add(lookEvery)
		if _, err := s.Identify(secret); err == nil || errors.Is(err, ErrUnknown) || s.Problem() == nil {
			t.Errorf("%q: %v", broken, err)
		}
		if who, err := s.Identify(own); err != nil || !who.Local {
			t.Errorf("own token beside %q: %v", broken, err)
		}
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(lookEvery)
	if who, err := s.Identify(secret); err != nil || who.Name != "ada" {
		t.Errorf("mended: %+v %v", who, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	now = now.Add(lookEvery)
	if _, err := s.Identify(secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("removed: %v", err)
	}
}

// TestHashesAreComparedInConstantTime finds comparisons of hashes or tokens by ==, which take longer the more is right.
func TestHashesAreComparedInConstantTime(t *testing.T) {
	used := false
	for _, name := range []string{"token.go", "store.go"} {
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BinaryExpr:
				if n.Op != token.EQL && n.Op != token.NEQ {
					return true
				}
				for _, side := range []ast.Expr{n.X, n.Y} {
					var text string
					switch side := side.(type) {
					case *ast.SelectorExpr:
						text = side.Sel.Name
					case *ast.Ident:
						text = side.Name
					}
					if text == "SHA256" || text == "sum" || text == "secret" {
						t.Errorf("%s: compare it with subtle.ConstantTimeCompare", fset.Position(n.Pos()))
					}
				}
			case *ast.SelectorExpr:
				used = used || n.Sel.Name == "ConstantTimeCompare"
			}
			return true
		})
	}
	if !used {
		t.Error("subtle.ConstantTimeCompare is not used")
	}
}
