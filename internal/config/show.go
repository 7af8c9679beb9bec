package config

import (
	"bytes"
	"reflect"
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
	removeDerived(&doc, "", derivedPaths(reflect.TypeOf(tree), ""))
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

func removeDerived(node *yaml.Node, path string, derived []string) {
	if node.Kind != yaml.MappingNode {
		return
	}
	var kept []*yaml.Node
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		inside := join(path, key.Value)
		if isDerived(inside, derived) {
			continue
		}
		removeDerived(value, inside, derived)
		kept = append(kept, key, value)
	}
	node.Content = kept
}
