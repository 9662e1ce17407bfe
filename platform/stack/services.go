package stack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
		Events   bool      `hcl:"events,optional"`
		Local    bool      `hcl:"local,optional"`
		Range    hcl.Range `hcl:",def_range"`
	}
)

var (
	serviceName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$`)
	secretField = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
)

const (
	// passwordField is where a service finds its database's password.
	passwordField = "database_password"
	// natsField is where a service finds its password for NATS.
	natsField = "nats_password"
	// nats is the job that carries events; operators is who its admin_password is for.
	nats      = "nats"
	operators = "admin"
	// natsRoutes is the field with what its servers show each other, where there
	// are several.
	natsRoutes = "routes"
)

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
		if block.Events && !slices.ContainsFunc(found, func(s Service) bool { return s.Name == nats }) {
			found = append(found, have.nats())
		}
		found = append(found, block.services()...)
	}
	return found, nil
}

// nats is the job for those that publish or consume events. It runs where any of
// them does.
func (s services) nats() Service {
	service := Service{
		Name: nats, File: "nomad-jobs/nats.nomad.hcl",
		Binaries: map[string]string{"nats_binary": "natsd", "proxy_binary": "meshproxyd"},
		Secrets: []Secret{
			{Field: natsUser(operators), Generate: randomPassword},
			{Field: natsRoutes, Generate: randomPassword},
		},
		KeepsData: true, Local: true,
	}
	for _, block := range s.Services {
		if block.Events {
			service.Secrets = append(service.Secrets, Secret{Field: natsUser(block.Name), Generate: randomPassword})
			service.Local = service.Local && block.Local
		}
	}
	return service
}

// natsUser is the field of NATS's Nomad variable that has a user's password.
func natsUser(name string) string { return strings.ReplaceAll(name, "-", "_") + "_password" }

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
	if slices.ContainsFunc(s.Services, func(b serviceBlock) bool { return b.Events }) {
		there[nats] = true
		if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(s.nats().File))); err != nil {
			problems = append(problems, fmt.Errorf("events need NATS, which has no job file: %w", err))
		}
	}
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
		if block.Events && block.Name == operators {
			wrong("the user %s of NATS is for operators: choose another name for a service with events", operators)
		}
		for _, field := range block.Secrets {
			switch {
			case !secretField.MatchString(field):
				wrong("the secret %q must be lower-case letters, digits and underscores", field)
			case block.Database && field == passwordField:
				wrong("the secret %q is the one which a database comes with", field)
			case block.Events && field == natsField:
				wrong("the secret %q is the one which events come with", field)
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
	if b.Events {
		service.Secrets = append(service.Secrets, Secret{Field: natsField, CopyOf: nats, CopyField: natsUser(b.Name)})
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
