package stack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"
)

// servicesFile says which jobs the platform has; relative to the checkout.
const servicesFile = "nomad-jobs/services.hcl"

// The file as HCL sees it.
type (
	services struct {
		Services []serviceBlock `hcl:"service,block"`
	}
	serviceBlock struct {
		Name     string    `hcl:"name,label"`
		Database bool      `hcl:"database,optional"`
		Secrets  []string  `hcl:"secrets,optional"`
		Local    bool      `hcl:"local,optional"`
		Range    hcl.Range `hcl:",def_range"`
	}
)

var (
	serviceName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$`)
	secretField = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
)

// passwordField is where a service finds its database's password.
const passwordField = "database_password"

// ReadServices are the platform's jobs as nomad-jobs/services.hcl of a checkout
// has them, those that others need first. The error names the line and the mend.
func ReadServices(root string) ([]Service, error) {
	file := filepath.Join(root, filepath.FromSlash(servicesFile))
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the services: %w", err)
	}
	parsed, diags := hclparse.NewParser().ParseHCL(text, servicesFile)
	if diags.HasErrors() {
		return nil, fmt.Errorf("reading the services: %w", diags)
	}
	var have services
	if diags := gohcl.DecodeBody(parsed.Body, nil, &have); diags.HasErrors() {
		return nil, fmt.Errorf("reading the services: %w", diags)
	}
	if err := have.check(root); err != nil {
		return nil, fmt.Errorf("reading the services: %w", err)
	}
	var found []Service
	for _, block := range have.Services {
		found = append(found, block.services()...)
	}
	return found, nil
}

// DataJobs are the names of those that keep data, for which machines have volumes.
func DataJobs(services []Service) []string {
	names := []string{}
	for _, service := range services {
		if service.KeepsData {
			names = append(names, service.Name)
		}
	}
	return names
}

func (s services) check(root string) error {
	var problems []error
	there := map[string]bool{}
	for _, block := range s.Services {
		wrong := func(format string, args ...any) {
			at := fmt.Sprintf("%s:%d: service %q: ", block.Range.Filename, block.Range.Start.Line, block.Name)
			problems = append(problems, errors.New(at+fmt.Sprintf(format, args...)))
		}
		if !serviceName.MatchString(block.Name) {
			wrong("a name is lower-case letters, digits and hyphens, starts with a letter and has at most 52 characters")
			continue
		}
		for _, service := range block.services() {
			if there[service.Name] {
				wrong("the job %s is there twice", service.Name)
			}
			there[service.Name] = true
			if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(service.File))); err != nil {
				wrong("it has no job file: %v", err)
			}
		}
		for _, field := range block.Secrets {
			if !secretField.MatchString(field) || block.Database && field == passwordField {
				wrong("the secret %q must be lower-case letters, digits and underscores, and not %s, which a database comes with", field, passwordField)
			}
		}
	}
	return errors.Join(problems...)
}

// services are the jobs of a block: the database before who needs it.
func (b serviceBlock) services() []Service {
	service := Service{
		Name: b.Name, File: "nomad-jobs/" + b.Name + ".nomad.hcl",
		Binaries: map[string]string{strings.ReplaceAll(b.Name, "-", "_") + "_binary": b.Name + "d"}, Local: b.Local,
	}
	for _, field := range b.Secrets {
		service.Secrets = append(service.Secrets, Secret{Field: field, Generate: randomKey})
	}
	if !b.Database {
		return []Service{service}
	}
	database := Service{
		Name: b.Name + "-db", File: "nomad-jobs/postgres.nomad.hcl",
		Binaries:  map[string]string{"postgres_binary": "postgresd", "proxy_binary": "meshproxyd"},
		Variables: map[string]string{"name": b.Name + "-db"},
		Secrets:   []Secret{{Field: "password", Generate: randomPassword}},
		KeepsData: true, Local: b.Local,
	}
	service.Secrets = append([]Secret{{Field: passwordField, CopyOf: database.Name, CopyField: "password"}}, service.Secrets...)
	return []Service{database, service}
}
