package transcode

import (
	"fmt"
	"strings"

	"github.com/marquee-ads/marquee/platform/fault"
)

// The reasons of the errors that this package makes.
const (
	// reasonJSON is a body that is not JSON.
	reasonJSON = "JSON_MALFORMED"
	// reasonDepth is JSON that nests too deep.
	reasonDepth = "JSON_TOO_DEEP"
	// reasonUTF8 is text that is not UTF-8, or half of a surrogate pair.
	reasonUTF8 = "UTF8_INVALID"
	// reasonUnknown is a field that the message does not have.
	reasonUnknown = "FIELD_UNKNOWN"
	// reasonDuplicate is a field, map key or oneof that is set twice.
	reasonDuplicate = "FIELD_DUPLICATE"
	// reasonType is a JSON value of another type than the field's.
	reasonType = "FIELD_TYPE"
	// reasonValue is a value of the right type that the field cannot hold.
	reasonValue = "FIELD_VALUE"
	// reasonRequired is a required field that is missing.
	reasonRequired = "FIELD_REQUIRED"
	// reasonAny is an Any whose type is not known.
	reasonAny = "ANY_TYPE_UNKNOWN"
	// reasonPath is a path with a broken percent-encoding.
	reasonPath = "PATH_MALFORMED"
	// reasonQuery is a query string with a broken percent-encoding.
	reasonQuery = "QUERY_MALFORMED"
	// reasonQueryUnknown is a query parameter that is no field, or a field that
	// the path or the body sets.
	reasonQueryUnknown = "QUERY_UNKNOWN"
	// reasonQueryTooLarge is a query string that is too long or has too many
	// parameters.
	reasonQueryTooLarge = "QUERY_TOO_LARGE"
	// reasonBody is a body where the route takes none.
	reasonBody = "BODY_UNEXPECTED"
	// reasonResponse is a response that cannot be written as JSON.
	reasonResponse = "RESPONSE_MALFORMED"
)

// failure is a fault in the making: on its way up each level puts its part in
// front of the path, so that a request without mistakes pays nothing for it.
type failure struct {
	reason      string
	description string
	path        string
}

func fail(reason, format string, args ...any) *failure {
	return &failure{reason: reason, description: fmt.Sprintf(format, args...)}
}

// in puts a field's name in front of the path.
func (f *failure) in(name string) *failure {
	switch {
	case f.path == "":
		f.path = name
	case f.path[0] == '[':
		f.path = name + f.path
	default:
		f.path = name + "." + f.path
	}
	return f
}

// at puts an index into a list in front of the path.
func (f *failure) at(index int) *failure { return f.subscript(fmt.Sprintf("[%d]", index)) }

func (f *failure) subscript(s string) *failure {
	if f.path != "" && f.path[0] != '[' {
		s += "."
	}
	f.path = s + f.path
	return f
}

// text is the failure for logs.
func (f *failure) text() string {
	if f.path == "" {
		return f.description
	}
	return f.path + ": " + f.description
}

// fault is the failure as the caller is told it.
func (f *failure) fault() *fault.Error {
	const most = 512
	if len(f.path) > most {
		f.path = strings.ToValidUTF8(f.path[:most], "") + "..."
	}
	err := fault.New(fault.InvalidArgument, f.reason, "%s", f.text())
	if f.path != "" {
		err = err.WithField(f.path, f.reason, f.description)
	}
	return err
}

// shown is text from outside as it may stand in a message: quoted and short.
func shown(text []byte) string {
	const most = 64
	if len(text) > most {
		return fmt.Sprintf("%q...", text[:most])
	}
	return fmt.Sprintf("%q", text)
}
