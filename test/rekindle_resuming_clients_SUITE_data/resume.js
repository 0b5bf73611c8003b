// Two connections over TLS 1.2, the second with the session of the first. Arguments: the port.
const tls = require('tls');
const options = { host: '127.0.0.1', port: Number(process.argv[2]), servername: 'localhost', maxVersion: 'TLSv1.2', rejectUnauthorized: false };

function connect(session, then) {
    const socket = tls.connect({ ...options, session }, () => socket.write('hello\n'));
    socket.on('data', () => {
        const next = socket.getSession();
        console.log('reused', socket.isSessionReused());
        socket.on('close', () => then(next));
        socket.end();
    });
}

connect(undefined, (session) => connect(session, () => {}));
