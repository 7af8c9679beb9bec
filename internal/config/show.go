package config

import (
	"bytes"
	"regexp"

	"go.yaml.in/yaml/v3"
)

// passwordInURL finds user:password@ in addresses and DSNs.
var passwordInURL = regexp.MustCompile(`(\w://[^:/@\s]*):[^@/\s]+@`)

// Show returns a tree as YAML, with secrets and the passwords in URLs hidden; `config show` and /configz print it.
func Show(tree any) ([]byte, error) {
	var doc yaml.Node
	if err := doc.Encode(tree); err != nil {
		return nil, err
	}
	hidePasswords(&doc)
	var buf bytes.Buffer
	encoder := yaml.NewEncoder(&buf)
	encoder.SetIndent(2)
	if err := encoder.Encode(&doc); err != nil {
		return nil, err
	}
	return buf.Bytes(), encoder.Close()
}

func hidePasswords(node *yaml.Node) {
	if node.Kind == yaml.ScalarNode {
		node.Value = passwordInURL.ReplaceAllString(node.Value, "${1}:"+hidden+"@")
	}
	for _, inner := range node.Content {
		hidePasswords(inner)
	}
}
