/*
 * Send one message with nodemailer. Standard input: JSON with the options of the transport and the message.
 * Standard output: the server's last reply; the exit code is 1, and the reply goes to standard error, when it refused.
 */

import nodemailer from 'nodemailer';

let input = '';
for await (const chunk of process.stdin) input += chunk;
const {transport, messages} = JSON.parse(input);

const transporter = nodemailer.createTransport(transport);
try {
  for (const message of messages) {
    const {response} = await transporter.sendMail(message);
    console.log(response);
  }
} catch (error) {
  console.error(error.response ?? error.message);
  process.exitCode = 1;
} finally {
  transporter.close();
}
