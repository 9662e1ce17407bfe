package main

import (
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/marquee-ads/marquee/platform/stack"
	accessv1 "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
)

type listCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run lists services and methods.
func (c *listCmd) Run(e *env) error {
	return e.withAPI(func(_ *stack.Stack, _ *door, a *api) error {
		names := make(map[string][]string, len(a.services))
		for _, service := range a.services {
			methods := make([]string, service.Methods().Len())
			for i := range methods {
				methods[i] = string(service.Methods().Get(i).Name())
			}
			names[string(service.FullName())] = methods
		}
		if c.JSON {
			return e.printJSON(names)
		}
		for _, service := range a.services {
			for _, method := range names[string(service.FullName())] {
				if _, err := fmt.Fprintf(e.stdout, "%s/%s\n", service.FullName(), method); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

type describeCmd struct {
	Name string `arg:"" help:"A service, SERVICE/METHOD, or a message."`
}

// Run describes one thing as a .proto file has it.
func (c *describeCmd) Run(e *env) error {
	return e.withAPI(func(_ *stack.Stack, _ *door, a *api) error {
		text, err := a.describe(c.Name)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(e.stdout, text)
		return err
	})
}

// describe writes a service, a method or a message as a .proto file has it, and
// with a method the messages it takes and returns.
func (a *api) describe(name string) (string, error) {
	if found, err := a.files.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(name, "/"), "/", "."))); err == nil {
		switch d := found.(type) {
		case protoreflect.ServiceDescriptor:
			return describeService(d), nil
		case protoreflect.MethodDescriptor:
			return describeMethod(d), nil
		case protoreflect.MessageDescriptor:
			return describeMessages(d), nil
		case protoreflect.EnumDescriptor:
			return describeEnum(d), nil
		}
	}
	if service, err := a.service(name); err == nil {
		return describeService(service), nil
	}
	method, err := a.method(name)
	if err != nil {
		return "", fmt.Errorf("nothing is called %q: want a service, SERVICE/METHOD, or a message; marquee list shows what there is", name)
	}
	return describeMethod(method), nil
}

func describeService(service protoreflect.ServiceDescriptor) string {
	var text strings.Builder
	fmt.Fprintf(&text, "service %s {\n", service.FullName())
	for i := range service.Methods().Len() {
		text.WriteString(indent(methodText(service.Methods().Get(i))))
	}
	text.WriteString("}\n")
	return text.String()
}

func describeMethod(method protoreflect.MethodDescriptor) string {
	text := methodText(method) + "\n" + describeMessages(method.Input())
	if method.Output() != method.Input() {
		text += "\n" + describeMessages(method.Output())
	}
	return text
}

// methodText is a method with what its options say about callers and routes.
func methodText(method protoreflect.MethodDescriptor) string {
	stream := map[bool]string{true: "stream "}
	var text strings.Builder
	options, _ := method.Options().(*descriptorpb.MethodOptions)
	access, _ := proto.GetExtension(options, accessv1.E_Access).(*accessv1.Access)
	who := strings.ToLower(strings.TrimPrefix(access.GetCaller().String(), "CALLER_"))
	if len(access.GetServices()) > 0 {
		who += " " + strings.Join(access.GetServices(), ", ")
	}
	fmt.Fprintf(&text, "// caller: %s; idempotency: %s\n", who, strings.ToLower(options.GetIdempotencyLevel().String()))
	rule, _ := proto.GetExtension(options, annotations.E_Http).(*annotations.HttpRule)
	for _, r := range append([]*annotations.HttpRule{rule}, rule.GetAdditionalBindings()...) {
		if verb, path := route(r); path != "" {
			fmt.Fprintf(&text, "// %s %s\n", verb, path)
		}
	}
	fmt.Fprintf(&text, "rpc %s(%s%s) returns (%s%s);\n", method.Name(),
		stream[method.IsStreamingClient()], method.Input().FullName(),
		stream[method.IsStreamingServer()], method.Output().FullName())
	return text.String()
}

func route(rule *annotations.HttpRule) (verb, path string) {
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		return "GET", p.Get
	case *annotations.HttpRule_Put:
		return "PUT", p.Put
	case *annotations.HttpRule_Post:
		return "POST", p.Post
	case *annotations.HttpRule_Delete:
		return "DELETE", p.Delete
	case *annotations.HttpRule_Patch:
		return "PATCH", p.Patch
	case *annotations.HttpRule_Custom:
		return p.Custom.GetKind(), p.Custom.GetPath()
	}
	return "", ""
}

// describeMessages writes a message and those it is made of, each once.
// Google's own well-known types are known to everybody and left out.
func describeMessages(first protoreflect.MessageDescriptor) string {
	var text strings.Builder
	seen := map[protoreflect.FullName]bool{first.FullName(): true}
	queue := []protoreflect.Descriptor{first}
	for len(queue) > 0 {
		next := queue[0]
		queue = queue[1:]
		if text.Len() > 0 {
			text.WriteByte('\n')
		}
		enum, ok := next.(protoreflect.EnumDescriptor)
		if ok {
			text.WriteString(describeEnum(enum))
			continue
		}
		message, _ := next.(protoreflect.MessageDescriptor)
		fmt.Fprintf(&text, "message %s {\n", message.FullName())
		for i := range message.Fields().Len() {
			field := message.Fields().Get(i)
			text.WriteString("  " + fieldText(field) + "\n")
			for _, part := range parts(field) {
				if !seen[part.FullName()] && !strings.HasPrefix(string(part.FullName()), "google.protobuf.") {
					seen[part.FullName()] = true
					queue = append(queue, part)
				}
			}
		}
		text.WriteString("}\n")
	}
	return text.String()
}

// parts are the messages and enums that a field's values are.
func parts(field protoreflect.FieldDescriptor) []protoreflect.Descriptor {
	if field.IsMap() {
		return parts(field.MapValue())
	}
	if message := field.Message(); message != nil {
		return []protoreflect.Descriptor{message}
	}
	if enum := field.Enum(); enum != nil {
		return []protoreflect.Descriptor{enum}
	}
	return nil
}

func fieldText(field protoreflect.FieldDescriptor) string {
	kind := kindText(field)
	switch {
	case field.IsMap():
		kind = fmt.Sprintf("map<%s, %s>", kindText(field.MapKey()), kindText(field.MapValue()))
	case field.IsList():
		kind = "repeated " + kind
	case field.HasOptionalKeyword():
		kind = "optional " + kind
	}
	text := fmt.Sprintf("%s %s = %d;", kind, field.Name(), field.Number())
	if oneof := field.ContainingOneof(); oneof != nil && !oneof.IsSynthetic() {
		text += " // one of " + string(oneof.Name())
	}
	return text
}

func kindText(field protoreflect.FieldDescriptor) string {
	if found := parts(field); len(found) == 1 && !field.IsMap() {
		return string(found[0].FullName())
	}
	return field.Kind().String()
}

func describeEnum(enum protoreflect.EnumDescriptor) string {
	var text strings.Builder
	fmt.Fprintf(&text, "enum %s {\n", enum.FullName())
	for i := range enum.Values().Len() {
		value := enum.Values().Get(i)
		fmt.Fprintf(&text, "  %s = %d;\n", value.Name(), value.Number())
	}
	text.WriteString("}\n")
	return text.String()
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n  ") + "\n"
}
