package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/marquee-ads/marquee/platform/images"
	"github.com/marquee-ads/marquee/platform/release"
)

type imagesCmd struct {
	Programs []string `arg:"" optional:"" name:"program" help:"Only these, for example accountd. Default: every service's."`
	Push     string   `placeholder:"REPOSITORY" help:"Send them to a registry, as REPOSITORY/PROGRAM:VERSION, with the credentials of docker login."`
	JSON     bool     `name:"json" help:"Print JSON."`
}

// Validate refuses a repository that cannot be, before anything is built.
func (c *imagesCmd) Validate() error {
	if c.Push == "" {
		return nil
	}
	return images.CheckRepository(c.Push)
}

// madeImage is an image as images prints it.
type madeImage struct {
	Program   string `json:"program"`
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
	File      string `json:"file"`
}

// Run builds the services and makes their images.
func (c *imagesCmd) Run(e *env) error {
	programs := c.Programs
	if len(programs) == 0 {
		packages, err := release.Packages(e.root)
		if err != nil {
			return err
		}
		for _, program := range slices.Sorted(maps.Keys(packages)) {
			if strings.HasPrefix(packages[program], "services"+string(filepath.Separator)) {
				programs = append(programs, program)
			}
		}
	}
	steps := newSteps(e.stderr)
	all := []madeImage{}
	for _, program := range programs {
		steps.say("building %s", program)
		built, err := release.Build(e.ctx, program)
		if err != nil {
			return err
		}
		steps.say("making the image of %s", program)
		image, err := images.Make(built[program], runtime.GOARCH, images.Folder(e.root))
		if err != nil {
			return err
		}
		reference := image.Reference(images.DefaultRepository)
		if c.Push != "" {
			steps.say("pushing %s", image.Reference(c.Push))
			if reference, err = image.Push(e.ctx, c.Push); err != nil {
				return err
			}
		}
		all = append(all, madeImage{program, reference, image.Digest, image.File})
	}
	if c.JSON {
		return e.printJSON(all)
	}
	for _, image := range all {
		if _, err := fmt.Fprintf(e.stdout, "%s  %s  %s\n", image.Reference, image.Digest, image.File); err != nil {
			return err
		}
	}
	return nil
}
