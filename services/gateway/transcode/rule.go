package transcode

import (
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// maxBindings is how many routes one method may have.
const maxBindings = 64

// rule is one route of a method, as it is written in its annotation.
type rule struct {
	// verb is the HTTP method, or "*" for any.
	verb         string
	template     string
	body         string
	responseBody string
}

// rulesOf reads a method's google.api.http annotation. Descriptors that came
// over the wire hold it as unknown bytes or as an extension of their own, so the
// options are read once more by who knows it.
func rulesOf(method protoreflect.MethodDescriptor) ([]rule, error) {
	if method.Options() == nil {
		return nil, nil
	}
	wire, err := proto.MarshalOptions{AllowPartial: true}.Marshal(method.Options())
	if err != nil {
		return nil, fmt.Errorf("reading its options: %w", err)
	}
	var known protoregistry.Types
	if err := known.RegisterExtension(annotations.E_Http); err != nil {
		return nil, fmt.Errorf("preparing to read its options: %w", err)
	}
	var options descriptorpb.MethodOptions
	if err := (proto.UnmarshalOptions{AllowPartial: true, Resolver: &known}).Unmarshal(wire, &options); err != nil {
		return nil, fmt.Errorf("reading its options: %w", err)
	}
	if !proto.HasExtension(&options, annotations.E_Http) {
		return nil, nil
	}
	first, ok := proto.GetExtension(&options, annotations.E_Http).(*annotations.HttpRule)
	if !ok {
		return nil, errors.New("its annotation google.api.http is none")
	}
	all := append([]*annotations.HttpRule{first}, first.GetAdditionalBindings()...)
	if len(all) > maxBindings {
		return nil, fmt.Errorf("it has more than %d bindings", maxBindings)
	}
	rules := make([]rule, 0, len(all))
	for i, r := range all {
		if i > 0 && len(r.GetAdditionalBindings()) > 0 {
			return nil, errors.New("an additional binding has additional bindings")
		}
		rules = append(rules, ruleOf(r))
	}
	return rules, nil
}

func ruleOf(r *annotations.HttpRule) rule {
	result := rule{body: r.GetBody(), responseBody: r.GetResponseBody()}
	switch p := r.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		result.verb, result.template = "GET", p.Get
	case *annotations.HttpRule_Put:
		result.verb, result.template = "PUT", p.Put
	case *annotations.HttpRule_Post:
		result.verb, result.template = "POST", p.Post
	case *annotations.HttpRule_Delete:
		result.verb, result.template = "DELETE", p.Delete
	case *annotations.HttpRule_Patch:
		result.verb, result.template = "PATCH", p.Patch
	case *annotations.HttpRule_Custom:
		result.verb, result.template = p.Custom.GetKind(), p.Custom.GetPath()
	}
	return result
}
