package main

// ConfigCmd is `ctrloop config`.
type ConfigCmd struct {
	Docs ConfigDocsCmd `cmd:"" help:"Print the reference of every key."`
}

// ConfigDocsCmd is `ctrloop config docs`.
type ConfigDocsCmd struct{}

// Run prints the reference page.
func (c *ConfigDocsCmd) Run(out *output) error {
	_, err := out.stdout.Write([]byte("pending"))
	return err
}
