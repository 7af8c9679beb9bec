package config

import (
	"bytes"

	"go.yaml.in/yaml/v3"
)

// Show returns a tree as YAML, with secrets hidden; `config show` and /configz print it.
func Show(tree any) ([]byte, error) {
	var buf bytes.Buffer
	encoder := yaml.NewEncoder(&buf)
	encoder.SetIndent(2)
	if err := encoder.Encode(tree); err != nil {
		return nil, err
	}
	return buf.Bytes(), encoder.Close()
}
