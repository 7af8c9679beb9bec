package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// TokensFile is the name of the file in the folder of an instance.
const TokensFile = "tokens.json"

// prefix starts every token, so that people and scanners of leaked secrets recognise one: ctrloop_<id>_<secret>.
const prefix = "ctrloop_"

// Sizes of a token's parts, in bytes of randomness. The id is public; 256 bits of secret cannot be guessed, so a plain
// SHA-256 is enough at rest: a slow hash protects secrets that people choose.
const (
	idBytes     = 5
	secretBytes = 32
)

// maxTokens bounds a file: all of it is in memory.
const maxTokens = 10_000

// Token is what the file holds of a token. The token itself is shown once, when it is made.
type Token struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Scopes  []Scope   `json:"scopes"`
	SHA256  string    `json:"sha256"` // of the whole token, hex
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
	Revoked time.Time `json:"revoked,omitzero"` // zero: not revoked
}

// Why a token is refused.
var (
	ErrUnknown = errors.New("the token is not one of this instance's")
	ErrExpired = errors.New("the token has expired")
	ErrRevoked = errors.New("the token has been revoked")
)

// ErrExists is returned for a name that a valid token has.
var ErrExists = errors.New("a token of this name exists")

// ErrNoToken is returned for an id or a name that no token has.
var ErrNoToken = errors.New("no such token")

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// reserved names are actors of the control log that are no people.
var reserved = []string{LocalName, "ctrloop", "trainer-bridge", "joiner", "pairer", "rollout", "swap", "serving", "experiment", "anonymous"}

type tokenFile struct {
	Format int     `json:"format"`
	Tokens []Token `json:"tokens"`
}

const fileFormat = 1

// Load reads a file of tokens; one that does not exist has none.
func Load(path string) ([]Token, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	var f tokenFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("read tokens: %s: %w", path, err)
	}
	if f.Format != fileFormat {
		return nil, fmt.Errorf("read tokens: %s has format %d, this binary reads %d", path, f.Format, fileFormat)
	}
	for _, t := range f.Tokens {
		if hash, err := hex.DecodeString(t.SHA256); err != nil || len(hash) != sha256.Size || t.ID == "" {
			return nil, fmt.Errorf("read tokens: %s: token %q has no hash: the file was changed by hand?", path, t.ID)
		}
	}
	return f.Tokens, nil
}

// Create adds a token to the file and returns it as its user needs it, once. expires zero: it never does.
func Create(path, name string, scopes []Scope, expires, now time.Time) (secret string, t Token, err error) {
	if !namePattern.MatchString(name) || slices.Contains(reserved, name) {
		return "", t, fmt.Errorf("name %q: want 1 to 64 letters, digits and . _ @ -, and none of %v: it is the actor on the control log",
			name, reserved)
	}
	if len(scopes) == 0 {
		return "", t, fmt.Errorf("no scopes: want some of %v", Scopes())
	}
	if !expires.IsZero() && !expires.After(now) {
		return "", t, fmt.Errorf("expires %s: is not in the future", expires.Format(time.RFC3339))
	}
	secret, t = draw(name, scopes, now)
	t.Expires = expires
	err = change(path, func(ts []Token) ([]Token, error) {
		for _, old := range ts {
			if old.Name == name && old.check(now) == nil {
				return nil, fmt.Errorf("%w: %s", ErrExists, name)
			}
		}
		if len(ts) >= maxTokens {
			return nil, fmt.Errorf("%d tokens are in %s: the most it may hold", len(ts), path)
		}
		return append(ts, t), nil
	})
	if err != nil {
		return "", Token{}, err
	}
	return secret, t, nil
}

// Revoke ends a token, named by its id or by its name.
func Revoke(path, which string, now time.Time) (revoked Token, err error) {
	err = change(path, func(ts []Token) ([]Token, error) {
		for i := range ts {
			if (ts[i].ID == which || ts[i].Name == which) && ts[i].Revoked.IsZero() {
				ts[i].Revoked = now
				revoked = ts[i]
				return ts, nil
			}
		}
		return nil, fmt.Errorf("%w: %q", ErrNoToken, which)
	})
	return revoked, err
}

// draw makes a token.
func draw(name string, scopes []Scope, now time.Time) (secret string, t Token) {
	random := make([]byte, idBytes+secretBytes)
	_, _ = rand.Read(random) // never fails
	id := hex.EncodeToString(random[:idBytes])
	secret = prefix + id + "_" + base64.RawURLEncoding.EncodeToString(random[idBytes:])
	return secret, Token{ID: id, Name: name, Scopes: scopes, SHA256: hash(secret), Created: now.UTC()}
}

func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// idOf is the public part of a token; false for what cannot be one.
func idOf(secret string) (string, bool) {
	rest, ok := strings.CutPrefix(secret, prefix)
	id, _, cut := strings.Cut(rest, "_")
	return id, ok && cut && len(id) == 2*idBytes
}

// is says whether the token has this hash, in a time that does not depend on how much of it is right.
func (t Token) is(hash string) bool {
	return subtle.ConstantTimeCompare([]byte(t.SHA256), []byte(hash)) == 1
}

// check says why a token that is right may not be used now.
func (t Token) check(now time.Time) error {
	switch {
	case !t.Revoked.IsZero():
		return ErrRevoked
	case !t.Expires.IsZero() && !now.Before(t.Expires):
		return ErrExpired
	}
	return nil
}

// change rewrites the file under a lock, so that two commands at once lose nothing. The file appears whole.
func change(path string, f func([]Token) ([]Token, error)) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	defer lock.Close() // lets go of the lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("write tokens: lock %s: %w", lock.Name(), err)
	}
	ts, err := Load(path)
	if err != nil {
		return err
	}
	if ts, err = f(ts); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(tokenFile{fileFormat, ts}, "", "  ")
	if err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // with mode 0600
	if err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	defer os.Remove(tmp.Name()) // does nothing after the rename
	_, err = tmp.Write(append(raw, '\n'))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	return nil
}
