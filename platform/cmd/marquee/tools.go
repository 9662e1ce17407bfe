package main

import (
	"fmt"

	"github.com/marquee-ads/marquee/platform/tools"
)

type toolsCmd struct {
	Names []string `arg:"" name:"tool" help:"${tools}."`
}

// Run finds or builds tools, one after the other, and prints where they are.
func (c *toolsCmd) Run(e *env) error {
	steps := newSteps(e.stderr)
	for _, name := range c.Names {
		path, err := tools.Ensure(e.ctx, name, func(line string) { steps.say("%s", line) })
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(e.stdout, path); err != nil {
			return err
		}
	}
	return nil
}
