package config

import (
	"encoding/json"
	"fmt"
)

// Secret is text that must not be shown: it prints, marshals and logs as "[set]" or "".
type Secret string

// hidden stands for a secret that is set.
const hidden = "[set]"

// Reveal returns the secret itself, for the one call that needs it.
func (s Secret) Reveal() string { return string(s) }

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// MarshalYAML hides the secret from `config show` and /configz.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// MarshalJSON hides the secret.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }
