package main

import (
	"fmt"
	"syscall"

	"github.com/marquee-ads/marquee/platform/tools"
)

type terraformCmd struct {
	Args []string `arg:"" optional:"" help:"Arguments of terraform, for example -chdir=terraform/environments/hcloud plan."`
}

// Run becomes terraform or tofu, so that its questions, signals and exit code
// are its own.
func (c *terraformCmd) Run(e *env) error {
	steps := newSteps(e.stderr)
	t, err := tools.EnsureTerraform(e.ctx, "", func(line string) { steps.say("%s", line) })
	if err != nil {
		return err
	}
	if err := syscall.Exec(t.Program, append([]string{t.Name}, c.Args...), t.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", t.Program, err)
	}
	return nil
}
