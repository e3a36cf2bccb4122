// Package deploy is what installs a gateway on a host: units for systemd and the
// user that they run it as. Its tests hold them against the program.
package deploy
