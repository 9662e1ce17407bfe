package service

import (
	"errors"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/platform/fault"
)

// errValidation is what a message that breaks its rules is answered with; each
// broken rule is a field of it.
var errValidation = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the request breaks the rules of its fields")

// maxViolations bounds the answer to a message with thousands of bad elements.
const maxViolations = 100

// validate checks a message against the protovalidate rules of its .proto.
func (g *grpcServer) validate(m *method, message any) error {
	if m.exempt {
		return nil
	}
	p, ok := message.(proto.Message)
	if !ok {
		return nil
	}
	err := g.validator.Validate(p)
	if err == nil {
		return nil
	}
	var broken *protovalidate.ValidationError
	if !errors.As(err, &broken) {
		return err
	}
	f := *errValidation
	for _, v := range broken.Violations[:min(len(broken.Violations), maxViolations)] {
		f.Fields = append(f.Fields, fault.Field{
			Path:        protovalidate.FieldPathString(v.Proto.GetField()),
			Rule:        v.Proto.GetRuleId(),
			Description: v.Proto.GetMessage(),
		})
	}
	return &f
}
