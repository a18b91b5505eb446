/* commands.h - the subcommands of rqvk-kv; argv[0] is the subcommand's name. Each returns the exit code. */
#ifndef RQ_KV_COMMANDS_H
#define RQ_KV_COMMANDS_H

int kv_synth_main(int argc, char **argv);
int kv_capture_main(int argc, char **argv);
int kv_replay_main(int argc, char **argv);
int kv_calibrate_main(int argc, char **argv);

#endif
