// Command authorisationdoc prints docs/authorisation.md: every method against
// every role, from the descriptors that it reads from standard input as buf
// build writes them.
package main

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/marquee-ads/marquee/platform/auth"
	accessv1 "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
)

//go:embed page.md
var page string

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "authorisationdoc:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	image, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("reading the descriptors: %w", err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(image, &set); err != nil {
		return fmt.Errorf("standard input is no set of descriptors; give it the output of buf build: %w", err)
	}
	text, err := render(set.GetFile())
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, text)
	return err
}

const place = "{{tables}}\n"

func render(files []*descriptorpb.FileDescriptorProto) (string, error) {
	if !strings.Contains(page, place) {
		return "", errors.New("page.md has no place for the tables")
	}
	var tables []string
	for _, file := range files {
		for _, service := range file.GetService() {
			table, err := tableOf(file.GetPackage()+"."+service.GetName(), service)
			if err != nil {
				return "", err
			}
			tables = append(tables, table)
		}
	}
	if len(tables) == 0 {
		return "", errors.New("the descriptors hold no service")
	}
	slices.Sort(tables)
	return strings.Replace(page, place, strings.Join(tables, "\n"), 1), nil
}

// tableOf is a service's heading and table.
func tableOf(name string, service *descriptorpb.ServiceDescriptorProto) (string, error) {
	var table strings.Builder
	fmt.Fprintf(&table, "## %s\n\n| method | HTTP | nobody | account |", name)
	for _, role := range auth.AllRoles() {
		fmt.Fprintf(&table, " %s |", role)
	}
	table.WriteString(" API key |\n|---|---|---|---|" + strings.Repeat("---|", len(auth.AllRoles())) + "---|\n")
	for _, method := range service.GetMethod() {
		row, err := rowOf(method)
		if err != nil {
			return "", fmt.Errorf("%s.%s: %w", name, method.GetName(), err)
		}
		table.WriteString(row)
	}
	return table.String(), nil
}

// rowOf is a method against everybody.
func rowOf(method *descriptorpb.MethodDescriptorProto) (string, error) {
	rule, _ := proto.GetExtension(method.GetOptions(), accessv1.E_Access).(*accessv1.Access)
	var nobody, account, key string
	roles := make([]string, len(auth.AllRoles()))
	every := func(text string) {
		for i := range roles {
			roles[i] = text
		}
	}
	const yes = "yes"
	switch {
	case rule.GetCaller() == accessv1.Caller_CALLER_SERVICE:
		every("")
		return line(method.GetName(), "only from "+strings.Join(rule.GetServices(), ", "), nobody, account, roles, key), nil
	case rule.GetCaller() == accessv1.Caller_CALLER_ANYONE:
		nobody, account, key = yes, yes, yes
		every(yes)
	case rule.GetCaller() != accessv1.Caller_CALLER_ACCOUNT:
		return "", errors.New("it does not say who may call it")
	case len(rule.GetRoles()) == 0:
		account = yes
		every(yes)
	default:
		for i, role := range auth.AllRoles() {
			if !slices.Contains(rule.GetRoles(), role.Proto()) {
				continue
			}
			roles[i] = yes
			if role != auth.Owner { // which no key is
				key = "by its role"
			}
		}
	}
	return line(method.GetName(), binding(method), nobody, account, roles, key), nil
}

func line(name, http, nobody, account string, roles []string, key string) string {
	cells := append([]string{"`" + name + "`", http, nobody, account}, roles...)
	return "| " + strings.Join(append(cells, key), " | ") + " |\n"
}

// binding is how a method is called over HTTP.
func binding(method *descriptorpb.MethodDescriptorProto) string {
	rule, _ := proto.GetExtension(method.GetOptions(), annotations.E_Http).(*annotations.HttpRule)
	verb, path := "", ""
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		verb, path = "GET", p.Get
	case *annotations.HttpRule_Put:
		verb, path = "PUT", p.Put
	case *annotations.HttpRule_Post:
		verb, path = "POST", p.Post
	case *annotations.HttpRule_Delete:
		verb, path = "DELETE", p.Delete
	case *annotations.HttpRule_Patch:
		verb, path = "PATCH", p.Patch
	case *annotations.HttpRule_Custom:
		verb, path = p.Custom.GetKind(), p.Custom.GetPath()
	}
	return cmp.Or(strings.TrimSpace(verb+" "+path), "gRPC only")
}
