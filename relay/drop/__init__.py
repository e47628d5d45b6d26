"""The drop folder: a way in for programs that can only write files. Each `.eml` file becomes one message.

    letter    whom a file is for, and what it says; pure
    folder    the file system: what may be taken, how it goes away
    reading   a slice of files, read and removed: on a thread
    watch     looks into the folders, and hands what it finds to the intake

Promises: a file goes away only once its message is durable, or into `refused/` with the reason beside it; whenever the relay
dies, each file becomes one message. Nothing in a folder can make it read or write elsewhere.
"""
