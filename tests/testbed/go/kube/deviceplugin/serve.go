package deviceplugin

import (
	"context"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const socketName = "testbed-gpu.sock"

// NewCommand serves until it is killed; it registers again whenever the kubelet starts anew.
func NewCommand() *cobra.Command {
	p := &plugin{}
	folder := ""
	command := &cobra.Command{
		Use:          "gpu-device-plugin",
		Short:        "Advertise GPUs that are not there",
		SilenceUsage: true,
		RunE: func(command *cobra.Command, _ []string) error {
			for {
				if err := p.serveOnce(command.Context(), folder); err != nil {
					log.Printf("Retrying: %v", err)
					time.Sleep(pollInterval)
				}
			}
		},
	}
	flags := command.Flags()
	flags.StringVar(&p.resource, "resource", "nvidia.com/gpu", "name of the extended resource")
	flags.IntVar(&p.count, "count", 4, "devices of this node")
	flags.StringVar(&p.health, "health", "", "folder in which a file named like a device makes it unhealthy")
	flags.StringVar(&folder, "plugins", "/var/lib/kubelet/device-plugins", "the kubelet's plugin folder")
	return command
}

// serveOnce serves until the kubelet, starting anew, deletes the sockets of its plugins.
func (p *plugin) serveOnce(ctx context.Context, folder string) error {
	socket := filepath.Join(folder, socketName)
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, p)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	if err := p.register(ctx, filepath.Join(folder, "kubelet.sock")); err != nil {
		return err
	}
	log.Printf("Registered %d devices of %s", p.count, p.resource)
	for {
		if _, err := os.Stat(socket); err != nil {
			return err
		}
		time.Sleep(pollInterval)
	}
}

func (p *plugin) register(ctx context.Context, kubelet string) error {
	connection, err := grpc.NewClient("unix://"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(connection).Register(ctx, &api.RegisterRequest{
		Version: api.Version, Endpoint: socketName, ResourceName: p.resource,
	})
	return err
}
