"""The exception that a user's mistake raises."""


class UserError(Exception):
    """Bad input from the user; its message is one line that names the file, option or record and says how to mend it.

    The program prints the message without a traceback and exits with code 2. Any other exception is a defect and keeps
    its traceback.
    """
