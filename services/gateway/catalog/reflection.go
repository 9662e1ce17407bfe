package catalog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// What one service may make the gateway hold. A large API has some hundred
// files and a megabyte or two.
const (
	maxFiles           = 2000
	maxDescriptorBytes = 16 << 20
	maxGRPCServices    = 500
)

// offer is what a service says of itself by reflection.
type offer struct {
	services []protoreflect.FullName
	files    *protoregistry.Files
	// digest tells whether anything changed since the last reading.
	digest [sha256.Size]byte
}

// The reflection protocol in its two versions, which have the same messages.
const (
	reflectionV1      = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
	reflectionV1alpha = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
)

// readOffer asks a service for its descriptors. The context bounds the time.
func readOffer(ctx context.Context, conn grpc.ClientConnInterface) (*offer, error) {
	o, err := readOfferAt(ctx, conn, reflectionV1)
	if status.Code(err) == codes.Unimplemented {
		return readOfferAt(ctx, conn, reflectionV1alpha)
	}
	return o, err
}

func readOfferAt(ctx context.Context, conn grpc.ClientConnInterface, path string) (*offer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := conn.NewStream(ctx, desc, path, grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(maxDescriptorBytes))
	if err != nil {
		return nil, fmt.Errorf("open reflection: %w", err)
	}
	r := &reader{
		stream: &grpc.GenericClientStream[reflectionv1.ServerReflectionRequest, reflectionv1.ServerReflectionResponse]{ClientStream: stream},
		files:  make(map[string]*descriptorpb.FileDescriptorProto),
		raw:    make(map[string][]byte),
	}
	return r.read()
}

// reader is one conversation with a reflection server.
type reader struct {
	stream grpc.BidiStreamingClient[reflectionv1.ServerReflectionRequest, reflectionv1.ServerReflectionResponse]
	files  map[string]*descriptorpb.FileDescriptorProto
	raw    map[string][]byte
	bytes  int
}

func (r *reader) read() (*offer, error) {
	listed, err := r.ask(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{ListServices: "*"},
	})
	if err != nil {
		return nil, fmt.Errorf("list gRPC services: %w", err)
	}
	o := &offer{}
	for _, service := range listed.GetListServicesResponse().GetService() {
		name := service.GetName()
		// gRPC's own services (health, reflection) are every process's own affair.
		if strings.HasPrefix(name, "grpc.") {
			continue
		}
		if len(o.services) == maxGRPCServices {
			return nil, fmt.Errorf("more than %d gRPC services", maxGRPCServices)
		}
		o.services = append(o.services, protoreflect.FullName(name))
		answer, err := r.ask(&reflectionv1.ServerReflectionRequest{
			MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name},
		})
		if err == nil {
			err = r.add(answer)
		}
		if err != nil {
			return nil, fmt.Errorf("read the file of %s: %w", name, err)
		}
	}
	if err := r.addDependencies(); err != nil {
		return nil, err
	}
	o.files, err = protodesc.NewFiles(&descriptorpb.FileDescriptorSet{File: slices.Collect(maps.Values(r.files))})
	if err != nil {
		return nil, fmt.Errorf("link the descriptors: %w", err)
	}
	slices.Sort(o.services)
	o.digest = r.digest(o.services)
	return o, nil
}

// addDependencies fetches what the files import and the server did not send
// along. What is not to be had there, and is well known, comes from this binary.
func (r *reader) addDependencies() error {
	for {
		missing := r.missing()
		if len(missing) == 0 {
			return nil
		}
		for _, name := range missing {
			answer, err := r.ask(&reflectionv1.ServerReflectionRequest{
				MessageRequest: &reflectionv1.ServerReflectionRequest_FileByFilename{FileByFilename: name},
			})
			if err == nil {
				err = r.add(answer)
			}
			if err == nil && r.files[name] == nil {
				err = errors.New("the answer is another file")
			}
			if err == nil {
				continue
			}
			own, ownErr := protoregistry.GlobalFiles.FindFileByPath(name)
			if ownErr != nil {
				return fmt.Errorf("read the import %s: %w", name, err)
			}
			r.files[name] = protodesc.ToFileDescriptorProto(own)
		}
	}
}

func (r *reader) missing() []string {
	wanted := make(map[string]bool)
	for _, file := range r.files {
		for _, name := range file.GetDependency() {
			if r.files[name] == nil {
				wanted[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(wanted))
}

func (r *reader) ask(request *reflectionv1.ServerReflectionRequest) (*reflectionv1.ServerReflectionResponse, error) {
	// An error of Send only says that the stream has ended; Recv says why.
	_ = r.stream.Send(request)
	answer, err := r.stream.Recv()
	if err != nil {
		return nil, err
	}
	if refused := answer.GetErrorResponse(); refused != nil {
		return nil, fmt.Errorf("refused: %s (%s)", refused.GetErrorMessage(), codes.Code(refused.GetErrorCode())) //nolint:gosec // a code of the protocol
	}
	return answer, nil
}

func (r *reader) add(answer *reflectionv1.ServerReflectionResponse) error {
	for _, raw := range answer.GetFileDescriptorResponse().GetFileDescriptorProto() {
		r.bytes += len(raw)
		if r.bytes > maxDescriptorBytes || len(r.files) >= maxFiles {
			return fmt.Errorf("more than %d files or %d bytes of descriptors", maxFiles, maxDescriptorBytes)
		}
		file := &descriptorpb.FileDescriptorProto{}
		if err := proto.Unmarshal(raw, file); err != nil {
			return fmt.Errorf("parse a file descriptor: %w", err)
		}
		r.files[file.GetName()] = file
		r.raw[file.GetName()] = raw
	}
	return nil
}

func (r *reader) digest(services []protoreflect.FullName) [sha256.Size]byte {
	h := sha256.New()
	for _, name := range services {
		fmt.Fprintf(h, "%s\n", name)
	}
	for _, name := range slices.Sorted(maps.Keys(r.raw)) {
		fmt.Fprintf(h, "%s %d\n", name, len(r.raw[name]))
		h.Write(r.raw[name])
	}
	return [sha256.Size]byte(h.Sum(nil))
}
