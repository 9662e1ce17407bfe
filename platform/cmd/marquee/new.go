package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/marquee-ads/marquee/platform/scaffold"
)

type newCmd struct {
	Service newServiceCmd `cmd:"" help:"Make a service that works as it is: API, code, tests, database, job and edges."`
}

type newServiceCmd struct {
	Name     string `arg:"" help:"What it is called, for example venue: its job, its packages and its database."`
	Resource string `placeholder:"WORD" help:"What it keeps, in the singular, for example invoice for a service called billing. Default: its name."`
	Remove   bool   `help:"Take it out again. Refused when it is no longer as it was made."`
	Force    bool   `help:"With --remove: also when somebody has worked on it."`
	Dir      string `type:"existingdir" placeholder:"FOLDER" help:"The checkout. Default: the one around the working directory."`
	JSON     bool   `name:"json" help:"Print what was made, changed and removed as JSON."`
}

// Help is shown with --help.
func (*newServiceCmd) Help() string {
	return `It makes proto/marquee/NAME, services/NAME and nomad-jobs/NAME.nomad.hcl, and adds the service to go.work, nomad-jobs/services.hcl and nomad-jobs/edges.hcl. What it makes keeps one kind of thing for each account: created with a request_id, read, and listed page by page. That is the place to start from.

Examples:
  marquee new service venue
  marquee new service billing --resource invoice
  marquee new service venue --remove

Then: make generate, make lint, make test, make up.`
}

// Validate refuses names that cannot be, before anything is looked at.
func (c *newServiceCmd) Validate() error {
	if c.Force && !c.Remove {
		return errors.New("--force only goes with --remove")
	}
	if c.Remove && c.Resource != "" {
		return errors.New("--remove finds out by itself what the service keeps; leave --resource out")
	}
	if err := scaffold.Check(c.Name); err != nil {
		return err
	}
	if c.Resource == "" {
		return nil
	}
	return scaffold.Check(c.Resource)
}

// AfterApply makes --dir the checkout before one is looked for.
func (c *newServiceCmd) AfterApply() error {
	if c.Dir == "" {
		return nil
	}
	return os.Setenv("MARQUEE_ROOT", c.Dir)
}

// Run makes or removes the service.
func (c *newServiceCmd) Run(e *env) error {
	changes, err := c.change(e.root)
	if err != nil {
		return err
	}
	return c.print(e, changes)
}

func (c *newServiceCmd) print(e *env, changes scaffold.Changes) error {
	if c.JSON {
		return e.printJSON(changes)
	}
	var text strings.Builder
	for _, part := range []struct {
		what  string
		paths []string
	}{{"made", changes.Made}, {"changed", changes.Changed}, {"removed", changes.Removed}} {
		for _, path := range part.paths {
			fmt.Fprintf(&text, "  %-8s %s\n", part.what, path)
		}
	}
	if c.Remove {
		fmt.Fprintf(&text, `
%s is gone from the checkout. Next:
  make generate                   takes it out of what is generated for all
  marquee jobs deploy --prune     stops what runs of it; what it has stored stays
`, c.Name)
	} else {
		fmt.Fprintf(&text, `
%[1]s is made. Next:
  make generate                   code from its API and its SQL
  make lint test                  it passes as it is
  make up                         runs it beside the others
  marquee new service %[1]s --remove    takes it out again
`, c.Name)
	}
	_, err := fmt.Fprint(e.stdout, text.String())
	return err
}

func (c *newServiceCmd) change(root string) (scaffold.Changes, error) {
	if !c.Remove {
		return scaffold.Create(root, scaffold.Service{Name: c.Name, Resource: c.Resource})
	}
	changes, err := scaffold.Remove(root, c.Name, c.Force)
	var touched *scaffold.TouchedError
	if errors.As(err, &touched) {
		return changes, fmt.Errorf("%w\nRemove it all the same with --force; git has what was committed", err)
	}
	return changes, err
}
